"""A live model whose cast rounded its frequencies is loaded with those of its config, and that is said."""

import warnings

import pytest
import torch
from tiny import CLASSES, Shape, tiny_model, tokens

from hooks import HookedTransformer
from hooks.errors import RotationWarning

FAR = 3000
SHAPE = Shape(layers=2)


def live_rotation(model, positions):
    """cos and sin by the model's own code, [pos feature] float64, as its buffers stand."""
    x = torch.zeros(1, 1, 1)
    cos, sin = model.model.rotary_emb(x, positions[None])
    return cos[0].double(), sin[0].double()


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_model_is_loaded_with_a_warning(dtype, back):
    theirs = tiny_model("llama", SHAPE).to(dtype)
    theirs = theirs.float() if back else theirs
    with pytest.warns(RotationWarning, match=r"inv_freq\) that are off by \d\.\de-0\d .*attach\(model\)"):
        ours = HookedTransformer.from_pretrained(theirs)
    positions = torch.tensor([FAR])
    cos, sin = ours.rotary["full_attention"](positions[None], dtype=torch.float32)
    # The definition, by hand: cos(p θ^(−2i/d)) in float64.
    angle = FAR * 10_000.0 ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    torch.testing.assert_close(cos.double().flatten()[:16], angle.cos(), rtol=0, atol=1e-3)
    torch.testing.assert_close(sin.double().flatten()[:16], angle.sin(), rtol=0, atol=1e-3)
    their_cos, their_sin = live_rotation(theirs, positions)
    apart = torch.hypot(their_cos.flatten()[:16] - angle.cos(), their_sin.flatten()[:16] - angle.sin())
    assert apart.max() > 0.1  # the live model is what is wrong there


def test_a_nested_schedule_is_named_by_its_layers():
    with pytest.warns(RotationWarning, match="attention_inv_freq"):
        HookedTransformer.from_pretrained(tiny_model("gemma3_text", SHAPE).to(torch.bfloat16))


@pytest.mark.parametrize("family", CLASSES)
def test_nothing_is_said_of_a_model_as_it_was_loaded(family):
    theirs = tiny_model(family, SHAPE, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RotationWarning)
        HookedTransformer.from_pretrained(theirs)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_a_long_text_has_changed_are_no_fault(kind):
    theirs = tiny_model("llama", SHAPE, kind)
    far = tokens(200, batch=1)  # beyond what it was trained on
    with torch.no_grad():
        expected = theirs(far).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error", RotationWarning)
        ours = HookedTransformer.from_pretrained(theirs)
    with torch.no_grad(), pytest.warns(UserWarning, match="beyond the 64 tokens"):
        torch.testing.assert_close(ours(far), expected, rtol=1e-4, atol=1e-4)
    with pytest.warns(RotationWarning):
        HookedTransformer.from_pretrained(theirs.to(torch.bfloat16))


def test_a_layer_type_that_no_layer_has_is_compared_with_its_own_schedule():
    """Gemma 3 keeps frequencies for sliding layers where all of its layers are full."""
    theirs = tiny_model("gemma3_text", layer_types=["full_attention"] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RotationWarning)
        HookedTransformer.from_pretrained(theirs)
