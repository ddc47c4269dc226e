"""Captures on a device, and every question to one: nothing is refused, and the answers are those of the CPU."""

import warnings

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from tiny_foreign import foreign_model, foreign_tokens
from tiny_hooked import random_tokens, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

import interp
from hooks import AttentionSpec, HookedTransformer, QKNormConfig, RopeConfig
from hooks.errors import InputError
from interp.measure import statistics
from interp.recording.plan import plan_capture
from interp.storage.writing import write_capture
from interp.tensors import capture_data

N = 60
KINDS = {
    "plain": {},
    "sinks and windows": {
        "learned_sinks": True,
        "layer_types": ("sliding_attention", "full_attention"),
        "window_size": 20,
    },
    "capped and clipped": {"attn_scores_soft_cap": 5.0, "clip_qkv": 2.0},
    "norm after rope, with bias": {"qk_norm": QKNormConfig(kind="layer", bias=True, position="after_rope")},
    "learned frequencies": {"rope": RopeConfig(rope_theta=10_000.0, learnable=True)},
}
SCALED = RopeConfig(rope_type="linear", factor=2.0)
QUESTIONS = {
    "statistics": lambda cap, model: cap.statistics(),
    "bound_by_distance": lambda cap, model: interp.bound_by_distance(cap),
    "first_token_mass": lambda cap, model: interp.first_token_mass(cap),
    "frequency_bias": lambda cap, model: interp.frequency_bias(cap),
    "head_summary": lambda cap, model: interp.head_summary(cap),
    "loss_by_position": lambda cap, model: interp.loss_by_position(cap),
    "positional_bias": lambda cap, model: interp.positional_bias(cap),
    "precision_cost": lambda cap, model: interp.precision_cost(cap),
    "received_by_position": lambda cap, model: interp.received_by_position(cap),
    "relativity_error": lambda cap, model: interp.relativity_error(cap, (1, 1000)),
    "relativity_error in float32": lambda cap, model: interp.relativity_error(cap, 1000, dtype=torch.float32),
    "score_ranges": lambda cap, model: interp.score_ranges(cap),
    "sink_rate": lambda cap, model: interp.sink_rate(cap),
    "what_if_rope": lambda cap, model: interp.what_if_rope(cap, SCALED, zero_pairs=[1], model=model),
    "what_if_rope, none": lambda cap, model: interp.what_if_rope(cap, None, alibi_slopes=(0.1, 0.2, 0.3, 0.4)),
    "top_keys": lambda cap, model: cap.top_keys(1, 3, 50),
    "pattern": lambda cap, model: cap.pattern[1, 2, 40:60].to_dataset(),
    "map": lambda cap, model: interp.attention_map(cap, 1, 2, size=16).to_dataset(),
}
# Differences of scores are what rounding leaves of them, and a score on the edge of a bin may fall on either side.
ROUNDING = ("relativity_error", "score_change_rms", "score_change_max")


def agree(found, wanted):
    """Two results are the same but for the rounding of other kernels."""
    found, wanted = (x.to_dataset() if isinstance(x, xr.DataArray) else x for x in (found, wanted))
    assert set(found) == set(wanted) and found.sizes == wanted.sizes
    for name in wanted:
        a, b = found[name].values, wanted[name].values
        if name == "score_count":
            assert np.allclose(a.sum(-1), b.sum(-1))
        elif b.dtype.kind != "f":
            assert np.array_equal(a, b), name
        else:
            loose = 1e-3 if name in ROUNDING else 1e-4
            assert np.allclose(a, b, rtol=20 * loose, atol=loose, equal_nan=True), (name, np.nanmax(abs(a - b)))


def same_tensors(found, wanted):
    """Two captures hold the same q, k, v and loss."""
    assert found.layers == wanted.layers and torch.equal(found.tokens, wanted.tokens)
    assert torch.allclose(found.loss, wanted.loss, rtol=1e-4, atol=1e-4)
    for layer in wanted.layers:
        for stage in wanted.stages(layer):
            for read in ("q", "k"):
                a, b = (getattr(cap, read)(layer, stage) for cap in (found, wanted))
                assert torch.allclose(a.cpu(), b, rtol=1e-4, atol=1e-4)
        assert torch.allclose(found.v(layer).cpu(), wanted.v(layer), rtol=1e-4, atol=1e-4)


def words():
    """A tokenizer of forty words."""
    vocabulary = {"<unk>": 0, "<bos>": 1, **{f"w{i}": i + 2 for i in range(40)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>")


def attached(device, name):
    """A foreign model there and here."""
    foreign = foreign_model(name) if name == "gpt_oss" else tiny.tiny_model(name)
    tokens = foreign_tokens(40, batch=1) if name == "gpt_oss" else tiny.tokens(40, batch=1)
    return HookedTransformer.attach(device.moved(foreign)), HookedTransformer.attach(foreign), tokens


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_are_captured_wherever_they_lie(device, kind):
    model, tokens = tiny_model(**KINDS[kind]), random_tokens(N)
    there, wanted = device.moved(model), interp.capture(model, tokens)
    for ids in (tokens, tokens[0].tolist(), tokens[0].numpy(), tokens.to(device.device)):
        cap = interp.capture(there, ids)
        assert cap.q(0).device == device.device
        same_tensors(cap, wanted)


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3", "olmo"])
def test_an_attached_model_is_captured(device, tmp_path, name):
    there, here, tokens = attached(device, name)
    wanted = interp.capture(here, tokens)
    for ids in (tokens, tokens[0].tolist(), tokens.to(device.device)):
        same_tensors(interp.capture(there, ids), wanted)
    cap = interp.capture(there, tokens, tmp_path / "cap")
    same_tensors(cap, wanted)
    agree(cap.statistics(), wanted.statistics())


def test_a_text_is_captured(device):
    model, text = tiny_model(), "w3 w1 w4 w1 w5 w9 w2 w6 w5 w3 w5 w8"
    model.tokenizer = words()
    there = device.moved(model)
    cap, wanted = interp.capture(there, text), interp.capture(model, text)
    same_tensors(cap, wanted)
    agree(cap.top_keys(0, 1, "w9"), wanted.top_keys(0, 1, "w9"))
    needle = interp.plant_needle(there, 60, sentence="w7 w11 w13", question="w2", haystack="w0 w1 w2 w3 " * 20)
    agree(
        interp.head_summary(interp.capture(there, needle.tokens), needle=needle),
        interp.head_summary(interp.capture(model, needle.tokens), needle=needle),
    )
    swept = {"sentence": "w7 w11 w13", "question": "w2", "answer": "w11", "haystack": "w0 w1 w2 w3 " * 20}
    agree(*(interp.needle_sweep(each, [40, 60], [0.2, 0.8], **swept) for each in (there, model)))
    same_tensors(
        interp.capture(there, interp.repeated_tokens(there, 10)),
        interp.capture(model, interp.repeated_tokens(model, 10)),
    )


@pytest.mark.parametrize("kind", ["plain", "sinks and windows", "capped and clipped"])
def test_statistics_of_a_capture_on_disk_are_computed_on_a_device(device, monkeypatch, tmp_path, kind):
    model, tokens, places = tiny_model(**KINDS[kind]), random_tokens(N), []
    interp.capture(model, tokens, tmp_path / "cap")
    wanted = interp.capture(model, tokens).statistics()
    plain = capture_data.attention_statistics

    def watched(q, k, spec, *, v, w_o, **more):
        places.extend(x.device for x in (q, k, v, w_o, spec.sinks) if x is not None)
        return plain(q, k, spec, v=v, w_o=w_o, **more)

    monkeypatch.setattr(capture_data, "attention_statistics", watched)
    cap = interp.open_capture(tmp_path / "cap")
    for where in (device.device, str(device.device)):
        cap._statistics.clear()
        agree(cap.statistics(map_size=16 if places else 128, device=where)["lse"], wanted["lse"])
    agree(cap.statistics(), wanted)
    assert set(places) == {device.device}
    packed = interp.capture(model, tokens, tmp_path / "packed", positions=torch.arange(N) % 20)
    agree(
        packed.statistics(device=device.device),
        interp.capture(model, tokens, positions=torch.arange(N) % 20).statistics(),
    )
    for wrong in ("cuda:nine", 3.5, "nowhere"):
        with pytest.raises(InputError, match="device="):
            cap.statistics(device=wrong)


def test_a_pass_on_cuda_has_a_budget_of_its_own(cuda, monkeypatch):
    q, asked = torch.randn(30, 2, 8), []
    monkeypatch.setattr(statistics, "block_height", lambda budget, *_: asked.append(budget) or 16)
    for x in (q, q.to(cuda.device)):
        interp.attention_statistics(x, x, AttentionSpec(0.3), backend="portable")
        interp.attention_statistics(x, x, AttentionSpec(0.3), backend="portable", memory_budget=2**20)
    assert asked == [32 * 2**20, 2**20, 2 * 2**30, 2**20]


@torch.no_grad()
def test_weights_are_streamed_to_a_device(device, tmp_path):
    tiny.tiny_model("qwen3", tiny.Shape(layers=3), dtype=torch.float32).save_pretrained(tmp_path / "model")
    held = HookedTransformer.from_pretrained(tmp_path / "model")
    there = HookedTransformer.from_pretrained(tmp_path / "model", device=str(device.device), stream=True)
    assert there.device == device.device
    there.stream._reader.submit(TorchDispatchMode.__enter__, device).result()  # a mode is a thread's own
    tokens, places = tiny.tokens(20, batch=1), []
    look = [("blocks.1.hook_resid_pre", lambda x, hook: places.append((x.device, there.blocks[1].attn.W_Q.device)))]
    out = there.run_with_hooks(tokens.to(device.device), fwd_hooks=look)
    assert places == [(device.device, device.device)]
    assert torch.allclose(out.cpu(), held(tokens), rtol=1e-4, atol=1e-4)
    same_tensors(interp.capture(there, tokens, tmp_path / "cap"), interp.capture(held, tokens))
    left = [name for name, p in there.named_parameters() if not p.is_meta and name.startswith("blocks.0")]
    assert not left


def test_a_capture_on_disk_goes_on_after_an_interruption(device, tmp_path):
    model, tokens = tiny_model(**KINDS["sinks and windows"]), random_tokens(N)
    there, wanted = device.moved(model), interp.capture(model, tokens)
    same_tensors(interp.capture(there, tokens, tmp_path / "whole"), wanted)

    class Stops:
        def start(self):
            pass

        def finished(self, layer):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_capture(plan_capture(there, tokens), tmp_path / "cut", watch=Stops())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not interp.open_capture(tmp_path / "cut").is_complete
    resumed = interp.resume(tmp_path / "cut", there)
    same_tensors(resumed, wanted)
    agree(resumed.statistics(), wanted.statistics())


@torch.no_grad()
def test_a_cache_is_a_capture(device):
    model, tokens = tiny_model(learned_sinks=True), random_tokens(N)
    there = device.moved(model)
    (_, found), (_, wanted) = (m.run_with_cache(tokens, names_filter="blocks.*.attn.hook_?*") for m in (there, model))
    cap = interp.Capture.from_cache(found, tokens=tokens.to(device.device))
    agree(cap.statistics(), interp.Capture.from_cache(wanted, tokens=tokens).statistics())


@pytest.fixture(scope="module")
def on_cpu():
    """The captures and what they answer on the CPU."""
    caps = {}
    for kind, changes in KINDS.items():
        model = tiny_model(**changes)
        caps[kind] = model, interp.capture(model, random_tokens(N))
    return caps


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_analysis_of_a_capture_on_a_device(device, on_cpu, kind):
    model, wanted = on_cpu[kind]
    there = device.moved(model)
    cap = interp.capture(there, random_tokens(N))
    for name, ask in QUESTIONS.items():
        try:
            agree(ask(cap, there), ask(wanted, model))
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.slow
def test_reports_and_comparisons_of_captures_on_a_device(device, on_cpu, tmp_path):
    model, wanted = on_cpu["sinks and windows"]
    there = device.moved(model)
    cap = interp.capture(there, random_tokens(N))
    other = interp.capture(there.with_config(rope=SCALED), random_tokens(N))
    agree(
        interp.compare(cap, other),
        interp.compare(wanted, interp.capture(model.with_config(rope=SCALED), random_tokens(N))),
    )
    path = cap.report(tmp_path / "report.html", compare_with=other)
    assert path.stat().st_size > 100_000
    assert "Capture" in repr(cap) and "<table" in cap._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"queries": 9}, {"queries": [3, 57]}, {"map_size": 7, "groups": ("map", "keys")}]
)
def test_statistics_of_tensors_on_a_device(device, changes):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(70, heads, 16, generator=generator) for heads in (4, 2, 2))
    w_o, mask = torch.randn(4, 16, 20, generator=generator), torch.ones(70, dtype=torch.bool)
    mask[[4, 50, 51]] = False
    specs = (
        AttentionSpec(0.25),
        AttentionSpec(0.25, window=11, softcap=3.0),
        AttentionSpec(0.25, causal=False, sinks=torch.ones(4)),
    )
    for spec in (*specs, AttentionSpec(0.25, alibi_slopes=(0.1, 0.2, 0.3, 0.4))):
        for options in ({}, {"key_mask": mask}, {"query_positions": 2 * torch.arange(70)}):
            wanted = interp.attention_statistics(q, k, spec, v=v, w_o=w_o, **options, **changes)
            there = (x.to(device.device) for x in (q, k))
            extra = {"v": v.to(device.device), "w_o": w_o.to(device.device)}
            agree(interp.attention_statistics(*there, spec, **extra, **options, **changes), wanted)
