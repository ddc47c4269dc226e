"""Arguments are what they say, or an error names them."""

import numpy as np
import pytest
import torch

from hooks import checks
from hooks.errors import HookNameError, InputError, MaterializationError, OutputError, StageError

NOT_WHOLE = [True, False, np.True_, 1.0, 1.7, "1", None, [1], np.array([1]), torch.tensor([1]), torch.tensor(True)]


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3), torch.tensor(3), np.array(3)], ids=repr)
def test_whole_numbers_of_every_kind(value):
    found = checks.whole("n", value, at_least=3, at_most=3)
    assert found == 3 and type(found) is int
    assert checks.number("n", value) == 3.0


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(InputError, match=r"^n=.*: give a whole number of at least 2"):
        checks.whole("n", value, at_least=2)


def test_bounds_are_part_of_the_message():
    with pytest.raises(StageError, match=r"layer=7: give a whole number from 0 to 3"):
        checks.whole("layer", 7, at_least=0, at_most=3, error=StageError)


@pytest.mark.parametrize("value", [[1, 0, 1], (1, 0), np.array([1, 0]), torch.tensor([1, 0]), iter([1, 0])])
def test_several_come_once_each_and_in_order(value):
    assert checks.wholes("layers", value) == (1, 0)


@pytest.mark.parametrize(
    "value", ["01", b"01", [1.7], [True], [0.9], None, {1: 2}, np.zeros((2, 2), int), [[1]], ["1"]]
)
def test_nothing_is_coerced_into_several(value):
    with pytest.raises(InputError, match=r"^layers="):
        checks.wholes("layers", value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), True, "0.5", None, [0.5], 1j, torch.tensor([0.5])], ids=repr
)
def test_numbers_are_finite(value):
    with pytest.raises(InputError, match=r"^x=.*: give a number"):
        checks.number("x", value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), np.float64(0.5)], ids=repr)
def test_numbers_of_every_kind(value):
    found = checks.share("x", value)
    assert found == 0.5 and type(found) is float


def test_open_and_closed_bounds():
    assert checks.number("x", 1, above=0) == 1.0
    for bounds, says in (({"above": 1}, "above 1"), ({"below": 1}, "below 1"), ({"at_least": 1.5}, "of at least 1.5")):
        with pytest.raises(InputError, match=says):
            checks.number("x", 1, **bounds)
    with pytest.raises(InputError, match=r"from 0 to 1"):
        checks.share("x", 1.0000001)


def test_choices_are_exact():
    assert checks.choice("mode", "mean", ("mean", "max")) == "mean"
    assert checks.choice("mode", None, ("mean", None)) is None
    assert checks.choices("groups", ["b", "a", "b"], ("a", "b")) == ("b", "a")
    assert checks.choices("groups", "a", ("a", "b")) == ("a",)
    for value in (1, True, "Mean", None, ["mean"]):
        with pytest.raises(InputError, match=r"give one of 'mean', 'max'"):
            checks.choice("mode", value, ("mean", "max"))
    for value in ([], "c", ["a", "c"], None, 3, [1]):
        with pytest.raises(InputError, match=r"one or several of"):
            checks.choices("groups", value, ("a", "b"))
    with pytest.raises(InputError):
        checks.choice("n", True, (1, 2))


def test_flags_and_paths():
    assert checks.flag("loss", True) is True and checks.flag("loss", np.False_) is False
    for value in (1, 0, "no", None, [True]):
        with pytest.raises(InputError, match="give True or False"):
            checks.flag("loss", value)
    assert str(checks.path("out", "a/b")) == "a/b"
    for value in ("", "a\0b", None, 3, b"a"):
        with pytest.raises(InputError, match="give the path"):
            checks.path("out", value)


def test_an_error_shows_little_of_what_is_large_or_hostile():
    class Hostile:
        def __repr__(self):
            raise RuntimeError

    assert checks.shown(torch.zeros(2, 3)) == "Tensor of shape (2, 3) and type torch.float32"
    assert len(checks.shown("x" * 10_000)) == 200
    assert checks.shown(Hostile()) == "a Hostile"


def test_words():
    assert checks.words("keys", "a") == ("a",)
    assert checks.words("keys", ["b", "a", "b"]) == ("b", "a")
    assert checks.words("keys", ()) == ()
    for value in (None, 3, b"a", ["a", 3], [""], ""):
        with pytest.raises(InputError, match="keys="):
            checks.words("keys", value)


def test_texts_objects_and_several_numbers():
    assert checks.text("title", "") == ""
    assert checks.instance("spec", 3, int, "a whole number") == 3
    assert checks.numbers("q", 0.5) == (0.5,) == checks.numbers("q", np.array([0.5]))
    assert checks.numbers("q", [1, 0, 1], at_least=0, at_most=1) == (1.0, 0.0, 1.0)
    for value in (None, b"a", 3, ["a"]):
        with pytest.raises(InputError, match=r"^title=.*: give a text"):
            checks.text("title", value)
    with pytest.raises(StageError, match=r"^spec='x': give a whole number"):
        checks.instance("spec", "x", int, "a whole number", error=StageError)
    for value in ("0.5", None, [0.5, True], [[0.5]], np.zeros((2, 2)), {0.5: 1}, [np.nan], [10**400]):
        with pytest.raises(InputError, match=r"^q="):
            checks.numbers("q", value)


def test_a_path_that_the_system_has_no_bytes_for():
    with pytest.raises(InputError, match="give the path"):
        checks.path("out", "\ud800")


@pytest.mark.parametrize("error", [InputError, OutputError, MaterializationError, HookNameError])
def test_no_message_is_endless(error):
    """Its beginning says what was wrong, its end what to do."""
    said = str(error(f"name={'x' * 10_000}: give something else"))
    assert len(said) < 2100 and said.startswith("name=xxx") and said.endswith("give something else")
    assert str(error("short")) == "short"
