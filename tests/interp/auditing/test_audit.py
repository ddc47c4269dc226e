"""An audit's bounds survive gradient ascent through the model itself; its words are true of models of every order."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
from tiny_foreign import foreign_model
from tiny_hooked import tiny_config, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from hooks import HookedTransformer, HookedTransformerConfig, QKNormConfig, RopeConfig
from hooks.errors import InputError, StageError
from interp import audit
from interp.captures import capture

ROPE = RopeConfig(rope_theta=100.0, precision="float64")
KINDS = ("sliding_attention", "full_attention")
LAYER_NORM = {"normalization_type": "LN", "norm_bias": True, "attn_bias": True}
MODELS = {
    "norm before attention": {"qk_norm": None},
    "LayerNorm and biases": {"qk_norm": None, **LAYER_NORM},
    "a gain from 1": {"qk_norm": None, "rmsnorm_uses_offset": True},
    "yarn": {
        "qk_norm": None,
        "rope": RopeConfig(
            rope_type="yarn", rope_theta=100.0, factor=8.0, original_max_position_embeddings=64, precision="float64"
        ),
    },
    "interleaved, partial": {
        "qk_norm": None,
        "rope": RopeConfig(rope_theta=100.0, rotary_dim=6, interleaved=True, precision="float64"),
    },
    "soft-cap": {"qk_norm": None, "attn_scores_soft_cap": 3.0},
    "clipped": {"qk_norm": None, "clip_qkv": 0.8},
    "clipped last": {"qk_norm": None, "clip_qkv": 0.8, "clip_position": "rope"},
    "no rotation": {"qk_norm": None, "rope": None},
    "QK-norm": {},
    "QK-norm per head, clipped": {"qk_norm": QKNormConfig(scope="per_head"), "clip_qkv": 0.9, "clip_position": "norm"},
    "QK-norm of all heads": {"qk_norm": QKNormConfig(scope="full")},
    "QK-norm after": {"qk_norm": QKNormConfig(position="after_rope")},
    "QK-norm after, no gain": {"qk_norm": QKNormConfig(position="after_rope", affine=False)},
    "LayerNorm of q and k": {"qk_norm": QKNormConfig(kind="layer", bias=True)},
    "LayerNorm after": {"qk_norm": QKNormConfig(kind="layer", position="after_rope")},
    "L2": {"qk_norm": QKNormConfig(kind="l2", scale=3.0)},
    "blocks normed behind": {"block_norms": "post"},
}
RELATIVE = {
    "no rotation": "no position",
    "clipped last": "no",
    "QK-norm after": "no",
    "LayerNorm after": "no",
}
BIASED = ("LayerNorm and biases", "LayerNorm of q and k", "clipped", "clipped last", "QK-norm per head, clipped")
NARROW = ("QK-norm of all heads",)  # 64 features of q from 32 of the stream: not every q can be had


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """A model in float64 and its audit."""
    changes = {"rope": ROPE, "n_ctx": 128, "d_vocab": 40, "dtype": torch.float64} | MODELS[request.param]
    model = tiny_model(**changes)
    return request.param, model, audit(model)


def final(model, layer, resid, positions):
    """q and k as the model itself makes them of a residual stream, [batch pos head d_head], k for each query head."""
    kept = []  # q comes first
    hooks = [(f"blocks.{layer}.attn.hook_{tensor}_final", lambda x, hook: kept.append(x)) for tensor in ("q", "k")]
    with model.hooks(fwd_hooks=hooks):
        model(resid, None, start_at_layer=layer, stop_at_layer=layer + 1, position_ids=positions)
    q, k = kept
    return q, k.repeat_interleave(q.shape[2] // k.shape[2], 2)


def score(model, q, k):
    """The score that enters softmax."""
    spec = model.attention_spec(0)
    linear = spec.scale * (q * k).sum(-1)
    return linear if spec.softcap is None else spec.softcap * torch.tanh(linear / spec.softcap)


def climb(model, layer, distance, value, steps=120, seed=0):
    """The largest |value(q, k)| that ascent from residual streams reaches, for each head; q stands Δ behind k."""
    generator = torch.Generator().manual_seed(seed)
    shape = (model.cfg.n_heads, 2, model.cfg.d_model)
    resid = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    positions = torch.tensor([[5, 5 + distance]]).expand(len(resid), 2)
    optimizer = torch.optim.Adam([resid], lr=0.1)
    best = torch.zeros(model.cfg.n_heads, dtype=torch.float64)
    heads = torch.arange(model.cfg.n_heads)  # each row of the batch climbs for one head
    for _ in range(steps):
        q, k = final(model, layer, resid, positions)
        reached = value(q[heads, 1, heads], k[heads, 0, heads]).abs()
        best = torch.maximum(best, reached.detach())
        optimizer.zero_grad()
        (-reached.sum()).backward()
        optimizer.step()
    return best.numpy()


def test_no_ascent_passes_a_bound(case):
    name, model, found = case
    for layer, distance in ((0, 1), (1, 16)):
        reached = climb(model, layer, distance, lambda q, k: score(model, q, k))
        one = found.layers.sel(layer=layer)
        bound, largest = one["bound"].sel(distance=distance).values, one["largest_bound"].values
        assert np.isfinite(bound).all() and (bound <= largest * (1 + 1e-9)).all()
        assert (reached <= bound * (1 + 1e-9)).all(), (reached, bound)
        tight = 0.3 if name in BIASED + NARROW else 0.9
        assert (reached > tight * bound).all(), (reached, bound)


def test_no_ascent_makes_an_entry_that_overflows(case):
    _, model, found = case
    room = found.layers["headroom"].sel(layer=1, dtype="float8_e4m3fn").values
    reached = climb(model, 1, 4, lambda q, k: torch.maximum(q.abs().amax(-1), k.abs().amax(-1)), steps=80)
    assert (reached <= 448 / room * (1 + 1e-9)).all()
    product = climb(model, 1, 4, lambda q, k: (q * k).sum(-1), steps=80)
    limit = 65504 / found.layers["headroom"].sel(layer=1, dtype="float16").values
    assert (product <= limit * (1 + 1e-9)).all()


def members(model, pair):
    """The features of a pair."""
    rope = model.cfg.rope_for(0)
    n = rope.width(model.cfg.d_head) // 2
    return [2 * pair, 2 * pair + 1] if rope.interleaved else [pair, pair + n]


def test_no_ascent_makes_a_pair_add_more_than_it_can(case):
    name, model, found = case
    one = found.heads.sel(layer=1, distance=8)
    if found.heads["reason"].values[1] or not found.heads.sizes["pair"]:
        assert np.isnan(one["largest_score"]).all()
        return
    for pair in (0, 2):
        at = members(model, pair)
        reached = climb(model, 1, 8, lambda q, k, at=at: (q[:, at] * k[:, at]).sum(-1), steps=80)
        bound = one["largest_score"].isel(pair=pair).values / model.attention_spec(1).scale
        assert (reached <= bound * (1 + 1e-9)).all()
        if name not in BIASED and model.cfg.qk_norm is None:
            assert (reached > 0.75 * bound).all() and (reached > 0.99 * bound).any()
            width = model.cfg.d_model * one["singular_value"].isel(pair=pair).values / model.attention_spec(1).scale
            np.testing.assert_allclose(bound, width, rtol=1e-9)


def test_relative_is_what_moving_every_position_shows(case):
    name, model, found = case
    resid = torch.randn(3, 2, model.cfg.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def scores(first, second):
        q, k = final(model, 0, resid, torch.tensor([[first, second]]).expand(3, 2))
        return score(model, q[:, 1], k[:, 0]).detach()

    moved = float((scores(3, 10) - scores(53, 60)).abs().max())
    further = float((scores(3, 10) - scores(3, 25)).abs().max())
    word = found.layers["relative"].values[0]
    assert word == RELATIVE.get(name, "yes") and found.layers["relative_reason"].values[0]
    assert (moved < 1e-9) == (word != "no")
    assert (further < 1e-9) == (word == "no position")


def test_the_mean_score_is_that_of_every_pair_of_token_embeddings(case):
    _, model, found = case
    if found.heads["reason"].values[1]:
        assert np.isnan(found.heads["mean_score"].sel(layer=1)).all()
        return
    embedding = model.embed_tokens(torch.arange(model.cfg.d_vocab)[:, None]).detach()
    for distance in (0, 1, 32):
        at = torch.full((len(embedding), 1), distance)
        q, _ = final(model, 1, embedding, at)
        _, k = final(model, 1, embedding, torch.zeros_like(at))
        scale = model.attention_spec(1).scale
        dense = scale * torch.einsum("thd,shd->hts", q[:, 0], k[:, 0]).mean((1, 2))
        one = found.heads.sel(layer=1, distance=distance)
        total = one["mean_score"].sum("pair").values + one["rest_mean_score"].values
        np.testing.assert_allclose(total, dense.detach().numpy(), rtol=1e-6, atol=1e-9)


def test_singular_values_with_a_qk_norm_are_of_what_it_does_to_random_inputs():
    model = tiny_model(rope=ROPE, dtype=torch.float64, n_layers=1)
    attn, norm = model.blocks[0].attn, model.blocks[0].ln1.weight.detach()
    weights = []
    for tensor in ("q", "k"):
        rows = getattr(attn, f"{tensor}_proj").weight.detach() * norm
        rows = rows.view(-1, 16, 32)
        inputs = torch.randn(20_000, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        size = torch.einsum("hdm,tm->thd", rows, inputs).square().mean((0, 2)).sqrt()
        gain = getattr(attn, f"{tensor}_norm").weight.detach()
        weights.append(gain[:, None] * rows / size[:, None, None])
    found = audit(model).heads["singular_value"].sel(layer=0, distance=4)
    for head, pair in ((0, 1), (3, 5)):
        f = 100.0 ** (-2 * pair / 16) * 4
        turn = torch.tensor([[math.cos(f), math.sin(f)], [-math.sin(f), math.cos(f)]], dtype=torch.float64)
        q, k = (w[h][[pair, pair + 8]] for w, h in zip(weights, (head, head // 2), strict=True))
        dense = float(torch.linalg.svdvals(q.T @ turn @ k)[0]) / 4  # the scale
        assert float(found.sel(head=head, pair=pair)) == pytest.approx(dense, rel=0.02)


FAMILIES = {
    "llama": ["yes"] * 3,
    "qwen3": ["yes"] * 3,
    "olmo2": ["yes"] * 3,
    "gemma3_text": ["yes"] * 3,
    "hunyuan_v1_dense": ["no"] * 3,
    "olmo": ["yes"] * 3,
    "gemma2": ["yes"] * 3,
    "smollm3": ["yes", "no position", "yes"],
    "phi": ["yes"] * 3,
    "stablelm": ["yes"] * 3,
    "cohere": ["yes"] * 3,
    "gpt_neox": ["yes"] * 3,
    "exaone4": ["yes", "no position", "yes"],
    "glm4": ["yes"] * 3,
    "nemotron": ["yes"] * 3,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_audited_and_no_text_passes_their_bounds(family):
    model = HookedTransformer.from_pretrained(tiny.tiny_model(family))
    found = audit(model)
    assert found.layers["relative"].values.tolist() == FAMILIES[family]
    stats = capture(model, tiny.tokens(60, batch=1)[0], loss=False).statistics(groups=("distances",))
    bound = found.layers["bound"]
    seen = [d for d in bound["distance"].values.tolist() if d < 60]
    for name, sign in (("score_max", 1), ("score_min", -1)):
        observed = sign * stats[name].sel(distance=seen).transpose("layer", "head", "distance").values
        limit = bound.sel(distance=seen).transpose("layer", "head", "distance").values
        assert (np.isnan(observed) | (observed <= limit * (1 + 1e-5))).all()
    assert np.isfinite(bound.sel(distance=0)).all() == (not found.layers["bound_reason"].values.any())
    assert repr(found)


def test_what_a_config_alone_says():
    cfg = tiny_config(rope=ROPE, n_ctx=128)
    found, whole = audit(cfg), audit(tiny_model(rope=ROPE, n_ctx=128))
    assert found.rotations.identical(whole.rotations) and found.schedules.identical(whole.schedules)
    assert np.isnan(found.layers["largest_bound"]).all() and np.isnan(found.heads["singular_value"]).all()
    assert all("only the config was read" in reason for reason in found.layers["bound_reason"].values)
    assert all("only the config was read" in reason for reason in found.heads["reason"].values)
    assert found.layers["relative"].values.tolist() == ["yes", "yes"]
    plain = tiny_config(rope=ROPE, qk_norm=QKNormConfig(affine=False))
    np.testing.assert_allclose(audit(plain).layers["largest_bound"], 16 / math.sqrt(16))  # gains are 1
    assert audit(tiny_config(qk_norm=None, attn_scores_soft_cap=5.0)).layers["bound_source"].values[0] == "soft-cap"
    after = tiny_config(qk_norm=QKNormConfig(position="after_rope"))
    assert audit(after).layers["relative"].values[0] == "unknown"


def test_a_streamed_model_gives_the_same_and_reads_no_more_than_it_needs(tmp_path):
    tiny.tiny_model("llama").save_pretrained(tmp_path)
    streamed, held = (HookedTransformer.from_pretrained(tmp_path, stream=stream) for stream in (True, False))
    found, whole = audit(streamed), audit(held)
    for name, dataset in found.datasets.items():
        assert dataset.identical(whole.datasets[name]), name
    read = [name for name, times in streamed.stream.reads.items() if times]
    assert not [name for name in read if any(part in name for part in ("mlp", "v_proj", "o_proj", "ln2"))]


def test_attached_models_say_what_is_not_known_of_them():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 64}
    learned = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    with HookedTransformer.attach(learned) as attached:
        found = audit(attached)
        assert not found.rotations.sizes["rotation"]
        assert found.layers["relative"].values.tolist() == ["unknown"] * 2
        assert np.isnan(found.layers["largest_bound"]).all()
        assert all("attached" in reason for reason in found.heads["reason"].values)
        assert "none: nothing limits q and k" in " ".join(repr(found).split())
    with HookedTransformer.attach(tiny.tiny_model("qwen3")) as attached:
        ours = audit(HookedTransformer.from_pretrained(attached.original_model))
        theirs = audit(attached)
        np.testing.assert_allclose(theirs.layers["bound"], ours.layers["bound"], rtol=1e-5)
        assert theirs.layers["relative"].values.tolist() == ["yes"] * 3


def test_alibi_is_relative_and_nothing_bounds_it_from_below():
    found = audit(tiny_model(rope=None, alibi_slopes=(2.0, 1.0, 0.5, 0.25)))
    assert found.layers["relative"].values.tolist() == ["yes", "yes"]
    assert found.layers["bound"].attrs["side"] == "above"
    np.testing.assert_array_equal(found.layers["sharpness_cap"], 1)


def test_windows_end_what_is_bounded():
    found = audit(tiny_model(layer_types=KINDS, window_size=9, n_ctx=64, rope=ROPE))
    known = np.isfinite(found.layers["bound"].isel(head=0).values)
    assert found.layers["distance"].values.tolist() == [0, 1, 2, 4, 8, 16, 32]
    assert known.sum(1).tolist() == [5, 7]
    assert audit(tiny_model(layer_types=KINDS, window_size=9, n_ctx=64), 0).layers.sizes["distance"] == 5


def test_sharpness_is_what_a_softmax_at_the_bound_reaches():
    found = audit(tiny_model(n_ctx=100, rope=ROPE)).layers
    bound = float(found["largest_bound"][0, 0])
    scores = torch.full((100,), -bound, dtype=torch.float64)
    scores[7] = bound
    assert float(found["sharpness_cap"][0, 0]) == pytest.approx(float(scores.softmax(0)[7]))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("gpt2",), InputError, "give a HookedTransformer"),
        ((None,), InputError, "give a HookedTransformer"),
        ((tiny_config(), 5), StageError, "layer 5 is none of those that attend: 0, 1"),
        ((tiny_config(), []), StageError, "no layer"),
        ((tiny_config(), 1.5), StageError, "layers=1.5"),
    ],
)
def test_what_is_no_model_or_layer_is_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        audit(*arguments)


@pytest.mark.parametrize("factor", [0.5, float("nan"), "2", True, None])
def test_a_factor_is_a_number_from_one_on(factor):
    with pytest.raises(InputError, match="factor="):
        audit(tiny_config(), factor=factor)


def test_weights_that_are_not_finite_are_refused_by_layer():
    model = tiny_model(qk_norm=None)
    with torch.no_grad():
        model.blocks[1].attn.k_proj.weight[3, 4] = float("nan")
    with pytest.raises(InputError, match="layer 1: the weights of k hold NaN"):
        audit(model)


def test_nobodys_hooks_run():
    model, seen = tiny_model(), []
    model.add_hook(lambda name: True, lambda tensor, hook: seen.append(hook.name))
    audit(model)
    assert seen == []


@pytest.mark.parametrize("width", [80, 200])
def test_it_prints_itself_within_a_width(width):
    from interp.auditing.printed import as_text

    model = tiny_model(layer_types=KINDS, window_size=9, n_ctx=64, rope={KINDS[0]: ROPE, KINDS[1]: None})
    lines = as_text(audit(model), width).splitlines()
    assert max(map(len, lines)) <= width and len(lines) < 45
    text = "\n".join(lines)
    for word in ("sliding layers", "full layers", "norm → rope", "critical dimension", "float16", "yarn", "token emb"):
        assert word in text, word


def test_it_is_json_and_a_page(tmp_path):
    model = tiny_model(qk_norm=None, model_name="</script><img src=x onerror=alert(1)>")
    found = audit(model)
    held = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    bound = np.asarray(held["layers"]["variables"]["largest_bound"]["values"])
    np.testing.assert_allclose(bound, found.layers["largest_bound"], rtol=1e-6)
    assert HookedTransformerConfig.from_dict(held["config"]) == model.cfg
    for part in ("rotations", "schedules", "layers", "heads"):
        for variable in held[part]["variables"].values():
            assert "units" in variable and variable["description"]
    page = found.report(tmp_path / "audit.html").read_text()
    assert "<img src=x" not in page.replace("&lt;img src=x", "")
    assert found.report(tmp_path / "audit.html")  # one of ours is replaced


def test_every_figure_of_it_can_be_shown():
    found = audit(tiny_model(rope=ROPE))
    for name in ("rotations", "schedules", "layers", "heads"):
        assert found.show(name, title="x").layout.title.text == "x"
    assert found.show("heads", layer=1, head=2).layout.title.text == "Frequency pairs of L1 H2"
    with pytest.raises(InputError, match="name="):
        found.show("scores")


def test_a_foreign_family_is_audited_as_far_as_it_can_be_seen():
    with HookedTransformer.attach(foreign_model("gpt_oss")) as attached:
        found = audit(attached)
    assert found.layers.sizes["layer"] == 2 and repr(found)
