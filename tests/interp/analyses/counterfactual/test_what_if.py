"""what_if_rope: in the first layer it is the model run anew, for every schedule and order of steps; what it refuses."""

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import Shape
from tiny import tiny_model as foreign_model
from tiny_hooked import random_tokens, tiny_model

from hooks import HookedTransformer, QKNormConfig, RopeConfig
from hooks.errors import ConfigError, InputError, StageError
from interp.analyses.counterfactual.what_if import what_if_rope
from interp.analyses.position.frequencies import frequency_bias
from interp.analyses.position.losses import loss_by_position
from interp.captures import Capture, capture

N = 51
# What most comparisons measure; the full effect is compared in every group.
SOME = ("rows", "distances")
SCHEDULES = {
    "base": RopeConfig(rope_theta=500.0),
    "linear": RopeConfig(rope_type="linear", factor=4.0),
    "llama3": RopeConfig(
        rope_type="llama3", factor=8.0, original_max_position_embeddings=32, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    "yarn": RopeConfig(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "dynamic": RopeConfig(rope_type="dynamic", factor=3.0, max_position_embeddings=20),
    "longrope": RopeConfig(
        rope_type="longrope",
        original_max_position_embeddings=40,
        max_position_embeddings=160,
        short_factor=(1.0,) * 8,
        long_factor=tuple(1 + 0.5 * i for i in range(8)),
    ),
    "proportional": RopeConfig(rope_type="proportional", partial_rotary_factor=0.5),
    "partial": RopeConfig(rotary_dim=10),
    "interleaved": RopeConfig(interleaved=True),
    "float32": RopeConfig(precision="float32"),
    "none": None,
}
ORDERS = {
    "norm, rope": {},
    "rope, norm": {"qk_norm": QKNormConfig(position="after_rope")},
    "rope, full layer norm with bias": {
        "qk_norm": QKNormConfig(kind="layer", scope="full", bias=True, position="after_rope", scale=1.5)
    },
    "rope, l2 norm per head, clip": {
        "qk_norm": QKNormConfig(kind="l2", scope="per_head", position="after_rope", unit_offset=True, scale=4.0),
        "clip_qkv": 0.8,
        "clip_position": "rope",
    },
    "clip, rope": {"qk_norm": None, "clip_qkv": 0.7},
    "rope, clip": {"qk_norm": None, "clip_qkv": 0.7, "clip_position": "rope"},
}


def test_a_capture_on_disk_knows_its_model_by_what_it_computes(tmp_path):
    model = tiny_model()
    model.cfg.model_name = "/models/tiny"
    tokens = random_tokens(9)[0]
    cap = capture(model, tokens, tmp_path / "one.capture")
    assert cap.cfg.model_name == "tiny"
    assert what_if_rope(cap, None, model=model, groups="rows")["variant"].values.tolist()[-1] == "full"
    with pytest.raises(InputError, match="not the one that was captured"):
        what_if_rope(cap, None, model=tiny_model(rope=RopeConfig(rope_theta=7.0)))


def test_one_silenced_pair_needs_no_list():
    cap = capture(tiny_model(), random_tokens(9)[0])
    one, listed = (what_if_rope(cap, cap.cfg.rope, zero_pairs=pairs, groups="rows") for pairs in (2, [np.int64(2)]))
    xr.testing.assert_identical(one, listed)
    with pytest.raises(InputError, match=r"zero_pairs holds 1\.5"):
        what_if_rope(cap, cap.cfg.rope, zero_pairs=[1.5])


def assert_same(found, expected, atol=2e-5):
    """Two Datasets of statistics agree in every variable; the index of a largest score may go either way in a tie."""
    for name, value in expected.drop_vars(["loss_mean", "loss_stderr"], errors="ignore").items():
        if name == "argmax_key":
            assert float((found[name] == value).mean()) > 0.99
        elif name == "score_count":
            assert int(abs(found[name] - value).sum()) <= 0.002 * int(value.sum())
        else:
            scale = float(abs(value).max()) or 1.0
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=atol * scale, err_msg=str(name))


def rerun(model, rope, n=N, **more):
    """Statistics of the first layer of the model under another schedule."""
    cap = capture(model.with_config(rope=rope, **more), random_tokens(n)[0], layers=0)
    return cap.statistics(groups=SOME).isel(layer=0)


@cache
def captured(order):
    """A model of one layer that does its steps in an order of `ORDERS`, and its capture."""
    model = tiny_model(n_layers=1, **ORDERS[order])
    return model, capture(model, random_tokens(N)[0])


CASES = [(schedule, "norm, rope") for schedule in SCHEDULES]
CASES += [
    ("partial", "rope, norm"),
    *((s, order) for order in ORDERS for s in ("yarn", "none") if (s, order) not in CASES),
]


@pytest.mark.parametrize(("schedule", "order"), CASES)
def test_in_the_first_layer_it_is_the_model_run_anew(schedule, order):
    (model, cap), rope = captured(order), SCHEDULES[schedule]
    found = what_if_rope(cap, rope, groups=SOME).isel(layer=0)
    assert found["variant"].values.tolist() == ["as_run", "what_if"]
    xr.testing.assert_equal(found.sel(variant="as_run", drop=True), cap.statistics(groups=SOME).isel(layer=0))
    assert_same(found.sel(variant="what_if"), rerun(model, rope))
    changes = abs(found["score_mean"].diff("variant")).max()
    assert float(changes) > 1e-3 or schedule == "float32"


def test_settings_that_come_from_the_model():
    own = RopeConfig(
        rope_type="llama3",
        rope_theta=900.0,
        factor=8.0,
        original_max_position_embeddings=16,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        rotary_dim=12,
        interleaved=True,
    )
    model = tiny_model(rope=own, n_layers=1)
    cap = capture(model, random_tokens(N)[0])
    rope = RopeConfig(rope_type="llama3", factor=2.0)
    assert_same(what_if_rope(cap, rope, groups=SOME).isel(layer=0, variant=1), rerun(model, rope))
    same = what_if_rope(cap, own, groups=SOME)
    xr.testing.assert_equal(same.isel(variant=0, drop=True), same.isel(variant=1, drop=True))


def test_layer_types_are_changed_apart():
    ropes = {"sliding_attention": RopeConfig(rope_theta=100.0), "full_attention": RopeConfig(rope_theta=1e5)}
    model = tiny_model(rope=ropes, layer_types=("sliding_attention", "full_attention"), window_size=9)
    cap = capture(model, random_tokens(N)[0])
    with pytest.raises(ConfigError, match="give rope as a mapping with any of the keys 'sliding_attention', 'full_at"):
        what_if_rope(cap, RopeConfig(rope_theta=50.0))
    with pytest.raises(ConfigError, match="neither a RopeConfig"):
        what_if_rope(cap, "linear")
    with pytest.raises(ConfigError, match="this model's are 'sliding_attention', 'full_attention'"):
        what_if_rope(cap, {"global": None})
    slid = {"sliding_attention": RopeConfig(rope_type="linear", factor=3.0)}
    found = what_if_rope(cap, slid, groups=SOME)
    assert_same(found.isel(variant=1, layer=0).sel(distance=slice(0, 8)), rerun(model, slid))
    xr.testing.assert_equal(found.isel(variant=1, layer=1, drop=True), found.isel(variant=0, layer=1, drop=True))
    full = what_if_rope(cap, {"full_attention": None}, groups=SOME)
    assert float(abs(full["lse"].diff("variant")).max("query").sel(layer=0).max()) == 0
    assert float(abs(full["lse"].diff("variant")).max("query").sel(layer=1).min()) > 0.01


def test_layers_without_rotation_stay_without():
    model = tiny_model(nope_layers=(0,))
    cap = capture(model, random_tokens(N)[0])
    found = what_if_rope(cap, RopeConfig(rope_theta=30.0), model=model, groups=SOME)
    for variant in (1, 2):
        assert_same(found.isel(variant=variant, layer=0), found.isel(variant=0, layer=0))
    with pytest.raises(StageError, match="no captured layer rotates"):
        what_if_rope(capture(model, random_tokens(N)[0], layers=0), RopeConfig(rope_theta=30.0))
    sloped = what_if_rope(cap, cap.cfg.rope, alibi_slopes=[0.5, 0.25, 0.1, 0.05], model=model, groups=SOME)
    assert_same(sloped.isel(variant=1, layer=0), sloped.isel(variant=2, layer=0))
    assert set(what_if_rope(cap, None, model=model, groups=SOME)["variant"].values) == {"as_run", "what_if", "full"}


def test_a_model_without_rotation_can_be_given_one():
    for position in ("before_rope", "after_rope"):
        model = tiny_model(rope=None, qk_norm=QKNormConfig(position=position))
        rope = RopeConfig(rope_theta=100.0)
        cap = capture(model, random_tokens(N)[0], stages=("pre_norm",), layers=0)
        assert_same(what_if_rope(cap, rope, groups=SOME).isel(variant=1, layer=0), rerun(model, rope))


def test_alibi_instead_of_rotation():
    slopes = (0.5, 0.25, 0.125, 0.0625)
    model = tiny_model(learned_sinks=True, attn_scores_soft_cap=8.0)
    cap = capture(model, random_tokens(N)[0], layers=0)
    found = what_if_rope(cap, None, alibi_slopes=slopes, groups=SOME).isel(layer=0, variant=1)
    assert_same(found, rerun(model, None, alibi_slopes=slopes))
    distance = found["mean_distance"].mean("query")
    assert (np.diff(distance.values) > 0).all()
    with pytest.raises(InputError, match="alibi_slopes has 3 entries for 4 heads"):
        what_if_rope(cap, None, alibi_slopes=[1, 2, 3])


@pytest.mark.parametrize("position", ["before_rope", "after_rope"])
def test_zeroed_pairs_add_nothing(position):
    model = tiny_model(qk_norm=QKNormConfig(position=position))
    cap = capture(model, random_tokens(N)[0])
    found = what_if_rope(cap, cap.cfg.rope, zero_pairs=slice(0, 3), model=model, groups=SOME)
    assert_same(found.isel(variant=1, layer=0), found.isel(variant=2, layer=0))
    listed = what_if_rope(cap, cap.cfg.rope, zero_pairs=[2, 0, 1], groups=SOME)
    xr.testing.assert_equal(found["score_mean"].isel(variant=1), listed["score_mean"].isel(variant=1))
    if position == "before_rope":
        kept = frequency_bias(cap)["score_mean"].sel(pair=slice(3, None)).sum("pair")
        np.testing.assert_allclose(found["score_mean"].isel(variant=1), kept, atol=1e-5)
    nothing = what_if_rope(cap, cap.cfg.rope, zero_pairs=slice(None), groups=SOME).isel(variant=1)
    np.testing.assert_allclose(nothing["max_score"], 0, atol=1e-6)
    with pytest.raises(InputError, match="zero_pairs holds 8: the frequency pairs are 0 to 7"):
        what_if_rope(cap, cap.cfg.rope, zero_pairs=[8])
    with pytest.raises(InputError, match="nothing rotates"):
        what_if_rope(cap, None, zero_pairs=[1])
    for band, rope in ((slice(0, 3), None), (slice(40, 60), cap.cfg.rope), (slice(3, 3), cap.cfg.rope)):
        with pytest.raises(InputError, match="nothing rotates" if rope is None else "selects no frequency pair"):
            what_if_rope(cap, rope, zero_pairs=band)


def test_zeroed_pairs_end_where_the_rotation_ends():
    model = tiny_model(qk_norm=None, rope=RopeConfig(rope_theta=300.0, rotary_dim=10))
    cap = capture(model, random_tokens(N)[0], layers=1)
    found = what_if_rope(cap, cap.cfg.rope, zero_pairs=slice(None), groups=SOME)["score_mean"].isel(variant=1)
    np.testing.assert_allclose(found, frequency_bias(cap)["score_mean_rest"], atol=1e-5)
    with pytest.raises(InputError, match="zero_pairs holds 5: the frequency pairs are 0 to 4"):
        what_if_rope(cap, cap.cfg.rope, zero_pairs=[5])


def test_the_full_effect_is_a_capture_of_the_changed_model():
    model = tiny_model()
    tokens, rope = random_tokens(N)[0], RopeConfig(rope_type="linear", factor=6.0)
    cap, other = capture(model, tokens), capture(model.with_config(rope=rope), tokens)
    found = what_if_rope(cap, rope, model=model)
    assert_same(found.sel(variant="full"), other.statistics())
    assert_same(found.isel(layer=0).sel(variant="what_if"), other.statistics().isel(layer=0))
    assert float(abs(found["lse"].isel(layer=1).diff("variant")).min("variant").max()) > 1e-3
    for variant, source in (("as_run", cap), ("full", other)):
        expected = loss_by_position(source)
        np.testing.assert_allclose(found["loss_mean"].sel(variant=variant), expected["loss_mean"], rtol=1e-5)
    np.testing.assert_array_equal(found["first_position"], expected["first_position"])
    assert np.isnan(found["loss_mean"].sel(variant="what_if")).all()
    assert found["loss_mean"].dims == ("variant", "position_bin")
    assert found.attrs["analysis"] == "what_if_rope"
    with pytest.raises(InputError, match="not the one that was captured"):
        what_if_rope(cap, rope, model=tiny_model(d_mlp=40))
    with pytest.raises(InputError, match="give the model that was captured, or None"):
        what_if_rope(cap, rope, model=torch.nn.Linear(2, 2))


def test_learned_frequencies_are_the_captured_ones():
    model = tiny_model(rope=RopeConfig(rope_theta=100.0, learnable=True))
    with torch.no_grad():
        for rotary in model.rotary.values():
            rotary.inv_freq.mul_(1.3)
    cap = capture(model, random_tokens(N)[0])
    found = what_if_rope(cap, cap.cfg.rope, zero_pairs=[7], model=model, groups=SOME)
    assert_same(found.isel(variant=1, layer=0), found.isel(variant=2, layer=0))
    for rope in (RopeConfig(interleaved=True), RopeConfig(rope_type="linear", factor=3.0)):
        assert_same(what_if_rope(cap, rope, groups=SOME).isel(variant=1, layer=0), rerun(model, rope))


@pytest.mark.parametrize("order", ["norm, rope", "rope, norm", "rope, full layer norm with bias"])
def test_bfloat16_goes_through_the_steps_as_in_the_model(order):
    model = tiny_model(n_layers=1, **ORDERS[order]).to(torch.bfloat16)
    cap = capture(model, random_tokens(N)[0])
    rope = RopeConfig(rope_type="linear", factor=3.0)
    assert_same(what_if_rope(cap, rope, groups=SOME).isel(variant=1, layer=0), rerun(model, rope))


def test_captures_of_caches():
    model = tiny_model(qk_norm=QKNormConfig(position="after_rope"), n_layers=1)
    _, held = model.run_with_cache(random_tokens(N))
    rope = RopeConfig(rope_theta=70.0)
    found = what_if_rope(Capture.from_cache(held), rope, groups=SOME)
    assert_same(found.isel(variant=1, layer=0), rerun(model, rope))


def test_any_stage_before_the_rotation_will_do():
    model, rope = tiny_model(n_layers=1), RopeConfig(rope_type="linear", factor=2.0)
    caps = [capture(model, random_tokens(N)[0], stages=stage) for stage in ("pre_norm", "pre_rope")]
    early, late = (what_if_rope(cap, rope, groups=SOME) for cap in caps)
    assert_same(early.isel(variant=1), late.isel(variant=1))


def test_what_it_cannot_do_says_what_would_help():
    tokens = random_tokens(N)[0]
    rope = RopeConfig(rope_type="linear", factor=2.0)
    model = tiny_model(n_layers=1)
    with pytest.raises(StageError, match=r"captured without the stage 'pre_rope'.*stages=\('pre_rope',\)"):
        what_if_rope(capture(model, tokens, stages=()), rope, groups=SOME)
    cap = capture(model, tokens)
    with pytest.raises(ConfigError, match="needs factor"):
        what_if_rope(cap, RopeConfig(rope_type="linear"))
    with pytest.raises(ConfigError, match="rotary_dim=18"):
        what_if_rope(cap, RopeConfig(rotary_dim=18))
    after = capture(tiny_model(n_layers=1, qk_norm=QKNormConfig(position="after_rope")), tokens)
    object.__setattr__(after.constants(0), "gain_q", None)
    with pytest.raises(StageError, match="the norm's weights are not in this capture"):
        what_if_rope(after, rope, groups=SOME)


def test_attached_models():
    n, rope = 40, RopeConfig(rope_type="linear", factor=5.0)
    turning = HookedTransformer.attach(foreign_model("hunyuan_v1_dense", Shape(vocab=61)))
    native = HookedTransformer.from_pretrained(turning.original_model)
    found = what_if_rope(capture(turning, random_tokens(n)[0]), rope, groups=SOME)
    assert_same(found.isel(variant=1, layer=0), rerun(native, rope, n))
    hidden = HookedTransformer.attach(foreign_model("phi3", Shape(vocab=61)))
    for setting in (rope, None):
        with pytest.raises(StageError, match="cannot be seen in this capture of a foreign model"):
            what_if_rope(capture(hidden, random_tokens(n)[0]), setting)
