"""A part of the layers: start_at_layer and stop_at_layer against the stream of a whole pass."""

import pytest
import torch

from hooks import HookedTransformer
from hooks.errors import InputError
from tests.support.tiny import tiny_model, tokens


@pytest.fixture(params=["native", "attached"])
def model(request):
    foreign = tiny_model("gemma3_text")
    if request.param == "native":
        yield HookedTransformer.from_pretrained(foreign)
        return
    with HookedTransformer.attach(foreign) as attached:
        yield attached


def streams(model, ids, **inputs):
    """The stream before each layer and after the last, and the logits, of transformers' own pass where it has them."""
    logits, cache = model.run_with_cache(ids, names_filter="blocks.*.hook_resid_p*", **inputs)
    before = [cache[f"blocks.{i}.hook_resid_pre"] for i in range(3)]
    return [*before, cache["blocks.2.hook_resid_post"]], logits


@pytest.mark.parametrize("inputs", [{}, {"attention_mask": torch.tensor([[0, 0, 0, *[1] * 8], [1] * 11])}])
def test_every_stretch_of_layers_is_that_of_the_whole_pass(model, inputs):
    ids = tokens(11)
    with torch.no_grad():
        stream, logits = streams(model, ids, **inputs)
        for stop in (*range(4), -1, -3):
            torch.testing.assert_close(model(ids, stop_at_layer=stop, **inputs), stream[stop % 3 if stop < 0 else stop])
            for start in range(stop % 3 + 1 if stop < 0 else stop + 1):
                got = model(stream[start], start_at_layer=start, stop_at_layer=stop, **inputs)
                torch.testing.assert_close(got, stream[stop % 3 if stop < 0 else stop])
        for start in (*range(4), -1, -3):
            got = model(stream[start % 3 if start < 0 else start], start_at_layer=start, **inputs)
            torch.testing.assert_close(got, logits)
        assert model(stream[1], return_type=None, start_at_layer=1) is None


def test_the_stream_is_that_of_transformers(model):
    foreign, ids = tiny_model("gemma3_text"), tokens(11)
    with torch.no_grad():
        theirs = foreign(ids, output_hidden_states=True, use_cache=False).hidden_states
        for layer in range(3):
            torch.testing.assert_close(model(ids, stop_at_layer=layer), theirs[layer], rtol=1e-5, atol=1e-5)


def test_hooks_and_caches_of_the_layers_that_run_and_of_no_others(model):
    ids = tokens(11)
    with torch.no_grad():
        stream, logits = streams(model, ids)
        out, cache = model.run_with_cache(stream[1], start_at_layer=1, stop_at_layer=2)
        torch.testing.assert_close(out, stream[2])
        assert {name.split(".")[1] for name in cache if name.startswith("blocks")} == {"1"}
        zero = [("blocks.1.hook_resid_pre", lambda x, hook: x * 0)]
        edited = model.run_with_hooks(ids, fwd_hooks=zero)
        got = model.run_with_hooks(stream[1], start_at_layer=1, fwd_hooks=zero)
        torch.testing.assert_close(got, edited)
        assert float((edited - logits).abs().max()) > 1e-2


def test_what_a_part_of_the_layers_cannot_give(model):
    ids, stream = tokens(11), torch.zeros(2, 11, 40)
    with pytest.raises(InputError, match="start_at_layer=4"):
        model(stream, start_at_layer=4)
    with pytest.raises(InputError, match="stop_at_layer=True"):
        model(ids, stop_at_layer=True)
    with pytest.raises(InputError, match="start_at_layer=2 lies behind stop_at_layer=1"):
        model(stream, start_at_layer=2, stop_at_layer=1)
    with pytest.raises(InputError, match="residual_loss"):
        model(stream, "loss", start_at_layer=1)
    for wrong in (ids, stream[0], stream[..., :7], stream.double()):
        with pytest.raises(InputError, match=r"takes a residual stream \[batch, pos, 40\] of torch.float32"):
            model(wrong, start_at_layer=1)


def test_layers_that_read_the_tokens_too_are_not_started_without_them(monkeypatch):
    with HookedTransformer.attach(tiny_model("llama")) as attached:
        plain = attached.context

        def with_tokens(tokens, **at):
            context = plain(tokens, **at)
            for _, beside in context.beside.values():
                beside["per_layer_input"] = tokens.float()  # as Gemma 3n hands each layer an embedding of its own
            return context

        monkeypatch.setattr(attached, "context", with_tokens)
        with pytest.raises(InputError, match="read the tokens beside the residual stream"):
            attached(torch.zeros(1, 5, 40), start_at_layer=1)
