"""A long text in pieces: what comes out is what comes out of it whole, watched or not, to the bit where it can be."""

import pytest
import tiny
import torch
from tiny_hooked import random_tokens, tiny_model

from hooks import HookedTransformer, QKNormConfig
from hooks.modules import chunks
from hooks.modules.chunks import by_position
from interp import capture

pytestmark = pytest.mark.filterwarnings("ignore::hooks.model.ContextLengthWarning")
N = 1000  # three pieces of 256 and a rest


@pytest.fixture
def in_pieces(monkeypatch):
    """Pieces of 256 positions, the fewest."""
    monkeypatch.setattr(chunks, "PIECE_BYTES", 1)


def stream_of(model, tokens):
    with torch.no_grad():
        return model(tokens, stop_at_layer=model.cfg.n_layers)


def assert_close(found, expected):
    """Within 1e-6 of the range: a product of fewer rows may be summed in another order."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.max() - expected.min())


@pytest.mark.parametrize(
    "family", ["gemma3_text", "llama", "olmo2", "cohere", "phi3", "gptj", "gpt_neox", "starcoder2"]
)
def test_every_kind_of_block_is_that_of_the_whole_text(family, monkeypatch):
    theirs = tiny.tiny_model(family)
    model, ids = HookedTransformer.from_pretrained(theirs), tiny.tokens(N, batch=2)
    whole, calls = stream_of(model, ids), []
    monkeypatch.setattr(chunks, "PIECE_BYTES", 1)
    monkeypatch.setattr(torch.nn.Linear, "forward", recording(torch.nn.Linear.forward, calls))
    assert_close(stream_of(model, ids), whole)
    d_mlp = model.blocks[0].mlp.up_proj.out_features
    assert max(rows for rows, width in calls if width == d_mlp) == 256


def recording(forward, calls):
    def run(self, x):
        calls.append((x.shape[1], self.out_features))
        return forward(self, x)

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_norms": "sandwich"},
        {"block_norms": "post"},
        {"parallel_attn_mlp": True},
        {"parallel_attn_mlp": True, "parallel_shared_norm": True},
        {"gated_mlp": False, "normalization_type": "LN", "norm_bias": True, "mlp_bias": True},
        {"qk_norm": QKNormConfig(scope="full")},
        {"residual_scale": 0.5},
        {"attn_only": True},
    ],
)
def test_looking_on_changes_no_bit_and_shows_whole_tensors(in_pieces, changes):
    model, ids, seen = tiny_model(**changes), random_tokens(N), []
    expected = stream_of(model, ids)

    def note_length(x, hook):
        seen.append(x.shape[1])

    for point in [name for name in model.hook_dict if name.startswith("blocks.0.") and "scores" not in name]:
        if point.endswith(("hook_pattern", "hook_pattern_rows", "_input", "hook_attn_in", "hook_result")):
            continue  # these go another way with any length
        with model.hooks(fwd_hooks=[(point, note_length)]):
            found = stream_of(model, ids)
        assert seen == [N], point
        seen.clear()
        assert torch.equal(found, expected), point


def test_hooks_of_torch_see_whole_tensors_too(in_pieces):
    model, ids, seen = tiny_model(), random_tokens(N), []
    expected = stream_of(model, ids)
    for part in (model.blocks[0].mlp, model.blocks[0].mlp.gate_proj, model.blocks[0].ln2, model.blocks[0].mlp.act):
        if not isinstance(part, torch.nn.Module):
            continue
        handle = part.register_forward_hook(lambda module, inputs, out: seen.append(out.shape[1]))
        assert_close(stream_of(model, ids), expected)
        handle.remove()
    assert seen and set(seen) == {N}


def test_edits_reach_what_comes_after(in_pieces):
    model, ids = tiny_model(), random_tokens(N)
    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda x, hook: torch.zeros_like(x))]):
        edited = stream_of(model, ids)
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: torch.zeros_like(x))]):
        assert torch.equal(edited, stream_of(model, ids))
    assert not torch.equal(edited, stream_of(model, ids))


def test_gradients_are_those_of_the_whole_text(monkeypatch):
    model, ids = tiny_model(), random_tokens(N)

    def gradients():
        model.zero_grad()
        model(ids, return_type="loss").backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole = gradients()
    monkeypatch.setattr(chunks, "PIECE_BYTES", 1)
    for name, found in gradients().items():
        torch.testing.assert_close(found, whole[name], rtol=1e-4, atol=1e-6)


def test_the_loss_and_a_capture_are_those_of_the_whole_text(monkeypatch):
    model, ids = tiny_model(), random_tokens(N)[0]
    whole = capture(model, ids)
    monkeypatch.setattr(chunks, "PIECE_BYTES", 1)
    found = capture(model, ids)
    assert_close(found.loss, whole.loss)
    for layer in whole.layers:
        assert_close(found.q(layer), whole.q(layer))
        assert_close(found.v(layer), whole.v(layer))


def test_what_works_on_each_position_gives_the_same_bits(in_pieces):
    x = torch.randn(2, N, 3, 16, generator=torch.Generator().manual_seed(0))
    y = x[..., 0, :1].squeeze(-1)
    found = by_position(lambda a, b: torch.tanh(a) * b[..., None, None], x, y, at_once=300)
    assert torch.equal(found, torch.tanh(x) * y[..., None, None])
