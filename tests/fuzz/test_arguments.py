"""Every public function and method, called with what nobody should give it: a named error, or a right answer.

Right means here: in time, and without an infinity that the same call with good arguments does not give.
"""

import signal

import called
import numpy as np
import pytest
import torch
import xarray as xr
from hostile import HOSTILE
from tiny_hooked import random_tokens

from hooks import RopeConfig
from hooks.errors import RopescopeError
from interp import capture

pytestmark = pytest.mark.filterwarnings("ignore")
AT_MOST = 10  # seconds
LONGEST_ERROR = 3000  # characters
PYTHONS_OWN = ("unexpected keyword argument", "missing ", "positional argument", "multiple values for")


class TooLongError(Exception):
    """A call did not come back."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, two captures of it, one on disk, and the table of calls."""
    directory = tmp_path_factory.mktemp("arguments")
    made = called.model()
    tokens = random_tokens(called.N - 2, vocab=14)[0]
    cap, other = capture(made, tokens), capture(made.with_config(rope=RopeConfig(rope_theta=50.0)), tokens)
    capture(made, tokens, directory / "kept.capture")
    return made, called.calls(made, cap, other, directory)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths lead into a directory of their own."""
    monkeypatch.chdir(tmp_path)


def infinite(result):
    """Whether there is an infinity in what came back."""
    if isinstance(result, torch.Tensor):
        return result.is_floating_point() and not result.is_meta and bool(torch.isinf(result.float()).any())
    if isinstance(result, xr.Dataset):
        return any(infinite(values) for values in result.data_vars.values())
    if isinstance(result, xr.DataArray):
        return result.dtype.kind == "f" and bool(np.isinf(result.values).any())
    return False


def outcome(function, arguments):
    """(word, complaint or None) of one call."""
    signal.setitimer(signal.ITIMER_REAL, AT_MOST)
    try:
        result = function(**arguments)
        return "answers", "an infinite answer" if infinite(result) else None
    except TooLongError:
        return "faults", f"took more than {AT_MOST} s"
    except RopescopeError as error:
        long = len(str(error)) > LONGEST_ERROR
        return "named errors", f"an error of {len(str(error)):,} characters" if long else None
    except TypeError as error:
        if any(said in str(error) for said in PYTHONS_OWN):
            return "Python's own errors of names", None
        return "faults", f"TypeError: {error}"
    except Exception as error:
        return "faults", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def too_long(signum, frame):
    raise TooLongError


def test_every_public_name_is_called(world):
    _, table = world
    assert not called.missing(table)
    found = {name: outcome(function, arguments) for name, (function, arguments) in table.items()}
    refused = dict.fromkeys(("from_pretrained", "attach"), ("named errors", None))
    assert found == dict.fromkeys(table, ("answers", None)) | refused


@pytest.mark.parametrize("part", range(10))
def test_a_hostile_argument_is_refused_by_name_or_answered(part, world, rng, draws, tally):
    before = signal.signal(signal.SIGALRM, too_long)
    _, table = world
    wrong = {}
    try:
        for _ in range(draws(60, 1000)):
            name = rng.choice(list(table))
            function, arguments = table[name]
            arguments, changed = dict(arguments), {}
            for argument in rng.sample(list(arguments), min(len(arguments), rng.choice((1, 1, 1, 2)))):
                changed[argument] = rng.choice(list(HOSTILE))
                arguments[argument] = HOSTILE[changed[argument]]()
            if rng.random() < 0.02:
                arguments["nonsense"] = 1
            word, complaint = outcome(function, arguments)
            tally[word] = tally.get(word, 0) + 1
            if complaint:
                wrong[f"{name}({changed})"[:200]] = complaint.splitlines()[0][:200]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not wrong, "\n".join(f"{call}: {complaint}" for call, complaint in sorted(wrong.items()))
