"""Does attaching change what the model computes: its outputs with and without, on a few tokens and on many."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hooks.attached.masks import MaskEditError
from hooks.attached.probe import PROBE_LENGTH, first_tensor, run_probe
from hooks.errors import AttachError
from hooks.functional.float64 import to_float64

_LAST = 8  # tokens compared: the last ones, beyond whatever the length was chosen to pass
_LONGEST = 4096 + _LAST
_PRODUCTS = 2 * 10**12  # weights times tokens of one run: seconds on a CPU
_TABLE_BYTES = 2**30  # for the n × n tables and logits of the model's own code
# Settings in tokens beyond which a model may compute something else.
_NAMED = ("sliding_window", "attention_window_size", "window_size", "index_topk", "original_max_position_embeddings")


class Limits(tuple[str, ...]):
    """What was not proven of an attached model, a sentence each; prints as lines."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(self) or "everything that was probed holds"


@dataclass(frozen=True)
class Outputs:
    """What a model gave on the probe's tokens before it was attached.

    Attributes:
        last: its output on the last tokens, by length, longest first; a length at which its own run failed is missing.
        limits: what could not be run, in sentences.
    """

    last: dict[int, Tensor]
    limits: tuple[str, ...]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients, and as it was on the way out."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def own_outputs(model: Any) -> Outputs:
    """Run a model by itself on a few tokens, and on as many as pass every length that its config names."""
    longest, limits = _long_length(model)
    last: dict[int, Tensor] = {}
    # The longest first: a schedule that adapts to a length falls back with a short text.
    for n in sorted({longest, PROBE_LENGTH}, reverse=True):
        try:
            last[n] = _last_outputs(model, n)
        except Exception as error:
            limits.append(
                f"by itself the model does not run on {n} tokens ({type(error).__name__}: {_line(error)}), so what it "
                "computes attached was not compared there"
            )
    return Outputs(last, tuple(limits))


def check_same(model: Any, own: Outputs) -> tuple[str, ...]:
    """Compare the outputs of a model that runs attached with its own, and return what could not be compared.

    Raises:
        AttachError: they differ, or the model works on its mask.
    """
    name, limits = type(model).__name__, list(own.limits)
    for n, expected in own.last.items():
        if not bool(expected.isfinite().all()):
            limits.append(f"by itself the model gives values that are not finite on {n} tokens: nothing was compared")
            continue
        try:
            found = _last_outputs(model, n)
        except MaskEditError as error:
            raise AttachError(f"{name} cannot be attached: {error} (on {n} tokens)") from error
        except AttachError as error:
            limits.append(f"on {n} tokens it is refused: {error}")
            continue
        wide = to_float64(expected)
        apart = (to_float64(found) - wide).abs().flatten(1).amax(-1) / wide.abs().max()
        eps = torch.finfo(expected.dtype).eps
        # In low precision two ways to sum are apart, and an expert may change; most tokens still agree.
        error = float(apart.max() if eps < 1e-5 else apart.median())
        if not error <= max(1e-3, 12 * eps):
            raise AttachError(
                f"{name} computes something else when attached: on {n} tokens its output is off by {error:.1%} of its "
                "range. Its attention does more than project, norm, rotate, score and mask, or it reads its mask "
                "itself; what would be captured is not what it computes"
            )
    return tuple(limits)


def _last_outputs(model: Any, n: int) -> Tensor:
    """The model's output on the last of n tokens, [token feature]."""
    takes_few = "logits_to_keep" in inspect.signature(model.forward).parameters
    out = run_probe(model, n, **({"logits_to_keep": _LAST} if takes_few else {}))
    found = getattr(out, "logits", None)
    if found is None:
        found = getattr(out, "last_hidden_state", None)
    if found is None:
        found = first_tensor(out if isinstance(out, tuple) else tuple(out.values()))
    assert found is not None
    return found[0, -_LAST:].detach().clone()


def _long_length(model: Any) -> tuple[int, list[str]]:
    """A length beyond every one that the config names, as far as a probe may go; and what lies beyond that."""
    text = model.config.get_text_config()
    settings = text.to_dict()
    nested = [value for value in settings.values() if isinstance(value, dict)]
    nested += [value for block in nested for value in block.values() if isinstance(value, dict)]
    named = {name: block[name] for block in (settings, *nested) for name in _NAMED if isinstance(block.get(name), int)}
    wanted = max([2 * _LAST, *(value + _LAST for value in named.values())])
    weights = sum(parameter.numel() for parameter in model.parameters())
    heads = getattr(text, "num_attention_heads", None) or 1
    most = min(_LONGEST, _PRODUCTS // max(weights, 1), int((_TABLE_BYTES / (12 * max(heads, 1))) ** 0.5))
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        most = min(most, _TABLE_BYTES // (8 * text.vocab_size))
    trained = getattr(text, "max_position_embeddings", None)
    if isinstance(trained, int):
        most = min(most, trained)
    n = max(min(wanted, most), PROBE_LENGTH)
    beyond = {name: value for name, value in named.items() if value >= n and value != trained}
    said = ", ".join(f"{name} = {value:,}" for name, value in beyond.items())
    limits = [f"outputs with and without attaching were compared on up to {n:,} tokens, which does not pass {said}"]
    return n, limits if beyond else []


def _line(error: Exception) -> str:
    """The start of an error's message."""
    return " ".join(str(error).split())[:200]
