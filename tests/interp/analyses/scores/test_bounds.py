"""score_bound: nothing exceeds it, ascent reaches it, closed forms equal an SVD; bounds by distance; quantiles."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from dense import visible
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hooked import random_tokens, tiny_model

from hooks import AttentionSpec, QKNormConfig, RopeConfig
from hooks.errors import InputError, StageError
from hooks.functional.rope import inv_freq
from interp import score_bound
from interp.analyses.scores.layer_bounds import bound_by_distance
from interp.captures import capture
from interp.measure.quantiles import score_quantile
from interp.measure.statistics import attention_statistics

D = 8
SPEC = AttentionSpec(scale=0.25)


def rotation(rope, positions, d=D):
    """[position d d] orthogonal matrices (times the attention factor on rotated features), from the definition."""
    out = torch.eye(d, dtype=torch.float64).repeat(len(positions), 1, 1)
    if rope is None:
        return out
    frequency, factor = inv_freq(rope, d)
    pairs = len(frequency)
    for n, position in enumerate(positions):
        for i, f in enumerate(frequency.double().tolist()):
            x, y = (2 * i, 2 * i + 1) if rope.interleaved else (i, i + pairs)
            c, s = factor * math.cos(f * position), factor * math.sin(f * position)
            out[n, x, x], out[n, x, y], out[n, y, x], out[n, y, y] = c, -s, s, c
    return out


def normalise(x, kind, scope, eps=1e-6):
    """x [pos head d] normalised per head or over all heads."""
    flat = x.flatten(1)[:, None] if scope == "full" else x
    if kind == "l2":
        flat = flat / flat.norm(dim=-1, keepdim=True).clamp_min(eps)
    else:
        if kind == "layer":
            flat = flat - flat.mean(-1, keepdim=True)
        flat = flat / (flat.square().mean(-1, keepdim=True) + eps).sqrt()
    return flat.reshape(x.shape)


def final(x, turn, norm, gain, bias, clip, clip_position):
    """q or k as it enters the score, from the projected x [pos head d] and rotations [pos d d], float64."""

    def normed(x):
        return normalise(x, norm.kind, norm.scope, norm.eps) * gain + bias

    def turned(x):
        return (turn[:, None] @ x[..., None])[..., 0]

    steps = [("rope", turned)]
    if norm is not None:
        steps.insert(0 if norm.position == "before_rope" else 1, ("norm", normed))
    if clip is not None:
        names = [name for name, _ in steps]
        place = {"projection": 0, "norm": names.index("norm") + 1 if norm is not None else 0, "rope": len(steps)}
        steps.insert(place[clip_position], ("clip", lambda x: x.clamp(-clip, clip)))
    for _, step in steps:
        x = step(x)
    return x


ROPES = [
    None,
    RopeConfig(rope_theta=100.0),
    RopeConfig(rope_theta=10000.0, interleaved=True),
    RopeConfig(rope_theta=50.0, partial_rotary_factor=0.5),
    RopeConfig(rope_type="linear", rope_theta=30.0, factor=3.0),
    RopeConfig(
        rope_type="yarn", rope_theta=10.0, factor=8.0, original_max_position_embeddings=64, max_position_embeddings=512
    ),
]


@st.composite
def settings_of_a_head(draw):
    kind = draw(st.sampled_from(["rms", "rms", "layer", "l2", None]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    norm = None
    if kind is not None:
        norm = QKNormConfig(
            kind=kind,
            scope=draw(st.sampled_from(["head", "per_head", "full"])),
            position=draw(st.sampled_from(["before_rope", "after_rope"])),
            bias=kind == "layer" and draw(st.booleans()),
        )
    shapes = [(kv_heads * group, D), (kv_heads, D)]
    if norm is not None and norm.scope == "head":
        shapes = [(D,), (D,)]
    gains = [randn(*shape) * draw(st.sampled_from([0.3, 2.0])) if norm else None for shape in shapes]
    biases = [randn(*shape) if norm is not None and norm.bias else None for shape in shapes]
    clip = draw(st.sampled_from([None, 0.5, 2.0]))
    where = draw(st.sampled_from(["projection", "norm", "rope"]))
    spec = AttentionSpec(
        scale=draw(st.sampled_from([D**-0.5, 1.0])),
        softcap=draw(st.sampled_from([None, None, 3.0])),
        window=draw(st.sampled_from([None, 4])),
    )
    rope = draw(st.sampled_from(ROPES))
    return norm, rope, gains, biases, clip, where, spec, kv_heads, group, randn


def inputs(randn, n, heads):
    """Projected vectors of very different sizes, some with everything in a pair of features."""
    x = randn(n, heads, D) * torch.exp(2 * randn(n, heads, 1))
    sparse = randn(n, heads, D) * (randn(n, heads, D).abs() > 1.3) * 30
    return torch.cat([x, sparse])


@settings(max_examples=100, deadline=None)
@given(settings_of_a_head())
def test_no_score_exceeds_its_bound(case):
    norm, rope, gains, biases, clip, where, spec, kv_heads, group, randn = case
    heads, n = kv_heads * group, 24
    bias = [torch.zeros(D) if b is None else b for b in biases]
    turn = rotation(rope, range(2 * n))
    q = final(inputs(randn, n, heads), turn, norm, gains[0], bias[0], clip, where)
    k = final(inputs(randn, n, kv_heads), turn, norm, gains[1], bias[1], clip, where)
    s = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(group, 1)) * spec.scale
    if spec.softcap is not None:
        s = spec.softcap * torch.tanh(s / spec.softcap)
    arguments = {"bias_q": biases[0], "bias_k": biases[1], "clip_qkv": clip, "clip_position": where}
    arguments |= {"n_heads": heads, "n_kv_heads": kv_heads, "d_head": D}
    distances = np.arange(2 * n)
    at = score_bound(norm, rope, *gains, spec, distance=distances, **arguments)
    anywhere = np.asarray(score_bound(norm, rope, *gains, spec, **arguments))
    per_head = norm is not None and norm.scope != "head"
    assert at.shape == ((heads, 2 * n) if per_head else (2 * n,))
    assert anywhere.shape == ((heads,) if per_head else ())
    delta = (torch.arange(2 * n)[:, None] - torch.arange(2 * n)).abs()
    own = torch.tensor(np.broadcast_to(at, (heads, 2 * n)).copy())[:, delta]
    causal = visible(2 * n, 2 * n)
    assert (s.abs()[:, causal] <= own[:, causal] * (1 + 1e-9)).all()
    seen = visible(2 * n, 2 * n, window=spec.window)
    most = s.abs()[:, seen].amax(1)
    assert (most <= torch.tensor(anywhere) * (1 + 1e-9)).all()
    if norm is None and clip is None and spec.softcap is None:
        assert np.isinf(anywhere)


TIGHT = [
    ("rms", "head", "before_rope"),
    ("rms", "head", "after_rope"),
    ("rms", "full", "before_rope"),
    ("rms", "full", "after_rope"),
    ("rms", "per_head", "before_rope"),
    ("l2", "head", "before_rope"),
    ("l2", "full", "after_rope"),
    ("layer", "head", "before_rope"),
    ("layer", "head", "after_rope"),
    ("layer", "full", "before_rope"),
]


@pytest.mark.parametrize(("kind", "scope", "position"), TIGHT)
@pytest.mark.parametrize("rope", [None, ROPES[3], ROPES[5]], ids=["nope", "partial", "yarn"])
def test_ascent_on_the_projected_vectors_reaches_the_bound(kind, scope, position, rope):
    generator = torch.Generator().manual_seed(5)
    heads, kv_heads, distance = 4, 2, 3
    norm = QKNormConfig(kind=kind, scope=scope, position=position)
    shapes = [(D,), (D,)] if scope == "head" else [(heads, D), (kv_heads, D)]
    gains = [1 + 0.7 * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    bound = score_bound(norm, rope, *gains, SPEC, distance=distance)
    target = bound if scope == "head" else bound[0]
    starts = [torch.randn(16, h, D, generator=generator, dtype=torch.float64) for h in (heads, kv_heads)]
    x, y = (start.requires_grad_() for start in starts)
    far, near = rotation(rope, [distance + 7, 7])[:, None].unbind()
    adam = torch.optim.Adam([x, y], lr=0.3)
    for _ in range(150):
        adam.zero_grad()
        q = final(x, far, norm, gains[0], 0, None, "projection")
        k = final(y, near, norm, gains[1], 0, None, "projection")
        s = (q[:, 0] * k[:, 0]).sum(-1) * SPEC.scale
        (-s.sum()).backward()
        adam.step()
    assert 0.95 * target <= s.max().item() <= target * (1 + 1e-9)


@pytest.mark.parametrize("rope", ROPES[1:])
@pytest.mark.parametrize("distance", [0, 1, 5, 1000])
def test_closed_form_equals_the_svd_of_the_whole_matrix(rope, distance):
    generator = torch.Generator().manual_seed(distance)
    for d in (8, 16, 64):
        a, b = torch.randn(2, d, generator=generator, dtype=torch.float64)
        turn = rotation(rope, [distance, 0], d)
        matrix = torch.diag(a) @ turn[0].T @ turn[1] @ torch.diag(b)
        want = SPEC.scale * d * torch.linalg.svdvals(matrix)[0].item()
        assert score_bound(QKNormConfig(), rope, a, b, SPEC, distance=distance) == pytest.approx(want, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["rms", "layer", "l2"]),
    st.sampled_from(["head", "full"]),
    st.sampled_from(ROPES),
    st.integers(0, 5000),
    st.sampled_from([None, 0.7]),
    st.integers(0, 1000),
)
def test_every_kind_of_norm_is_bounded_by_an_svd(kind, scope, rope, distance, softcap, seed):
    """Full width as one big matrix over all heads' features, of which one head's block picks its own rows."""
    generator = torch.Generator().manual_seed(seed)
    heads, kv_heads = (1, 1) if scope == "head" else (4, 2)
    a = torch.randn(heads, D, generator=generator, dtype=torch.float64)
    b = torch.randn(kv_heads, D, generator=generator, dtype=torch.float64)
    turn = rotation(rope, [distance, 0])
    got = score_bound(
        QKNormConfig(kind=kind, scope=scope),
        rope,
        a[0] if scope == "head" else a,
        b[0] if scope == "head" else b,
        AttentionSpec(scale=SPEC.scale, softcap=softcap),
        distance=distance,
    )
    radius = 1 if kind == "l2" else (a.numel() * b.numel()) ** 0.5
    for head, bound in enumerate(np.atleast_1d(got)):
        own = head // (heads // kv_heads)
        block = torch.diag(a[head]) @ turn[0].T @ turn[1] @ torch.diag(b[own])
        matrix = torch.zeros(a.numel(), b.numel(), dtype=torch.float64)
        matrix[head * D : (head + 1) * D, own * D : (own + 1) * D] = block
        if kind == "layer":
            matrix = matrix - matrix.mean(0, keepdim=True)
            matrix = matrix - matrix.mean(1, keepdim=True)
        want = SPEC.scale * radius * torch.linalg.svdvals(matrix)[0].item()
        assert bound == pytest.approx(want if softcap is None else softcap * math.tanh(want / softcap), rel=1e-9)


@pytest.mark.parametrize("rope", ROPES[1:4])
def test_a_clip_is_reached_at_a_corner_of_the_box(rope):
    d, clip, distance = 4, 1.5, 2
    corners = torch.cartesian_prod(*[torch.tensor([-clip, clip], dtype=torch.float64)] * d)
    turn = rotation(rope, [distance, 0], d)
    for where, most in (
        ("projection", (corners @ turn[0].T @ turn[1] @ corners.T).max().item()),
        ("rope", d * clip**2),
    ):
        arguments = {"distance": distance, "clip_qkv": clip, "clip_position": where, "d_head": d}
        assert score_bound(None, rope, None, None, SPEC, **arguments) == pytest.approx(SPEC.scale * most, rel=1e-12)
    whole = score_bound(None, rope, None, None, SPEC, clip_qkv=clip, d_head=d)
    assert whole == pytest.approx(SPEC.scale * d * clip**2)


def test_a_clip_before_the_norm_leaves_the_norms_bound():
    gains = torch.rand(2, D) + 1
    free = score_bound(QKNormConfig(), ROPES[1], *gains, SPEC)
    assert score_bound(QKNormConfig(), ROPES[1], *gains, SPEC, clip_qkv=0.01) == free
    after = score_bound(QKNormConfig(), ROPES[1], *gains, SPEC, clip_qkv=0.01, clip_position="norm")
    assert after == pytest.approx(SPEC.scale * D * 1e-4)


def test_without_a_distance_it_is_the_largest_over_distances():
    generator = torch.Generator().manual_seed(0)
    gains = torch.randn(2, 3, 16, generator=generator)
    rope = RopeConfig(rope_theta=1000.0)
    profile = score_bound(QKNormConfig(scope="per_head"), rope, *gains, SPEC, distance=np.arange(50_000))
    assert profile.shape == (3, 50_000)
    whole = score_bound(QKNormConfig(scope="per_head"), rope, *gains, SPEC)
    assert (profile.max(1) <= whole).all()
    np.testing.assert_allclose(profile.max(1), whole, rtol=1e-4)
    for furthest in (0, 1, 40):
        sliding = AttentionSpec(scale=SPEC.scale, window=furthest + 1)
        most = profile[:, : furthest + 1].max(1)
        np.testing.assert_allclose(score_bound(QKNormConfig(), rope, *gains, sliding), most, rtol=1e-12)
        got = score_bound(QKNormConfig(), rope, *gains, SPEC, max_distance=furthest)
        np.testing.assert_allclose(got, most, rtol=1e-12)


def test_known_values():
    ones = torch.ones(64)
    spec = AttentionSpec(scale=1 / 8)
    assert score_bound(QKNormConfig(), RopeConfig(rope_theta=1e4), ones, ones, spec) == pytest.approx(8)
    assert score_bound(QKNormConfig(kind="l2"), None, 10 * ones, 10 * ones, spec) == pytest.approx(12.5)
    full = QKNormConfig(scope="full")
    assert score_bound(full, None, ones, ones, spec, n_heads=8, n_kv_heads=2) == pytest.approx(8 * 4)
    capped = AttentionSpec(scale=1 / 8, softcap=5.0)
    assert score_bound(QKNormConfig(), None, ones, ones, capped) == pytest.approx(5 * math.tanh(8 / 5))
    assert score_bound(None, None, None, None, capped) == 5.0
    assert score_bound(None, RopeConfig(rope_theta=1e4), None, None, spec) == math.inf


def test_gains_that_do_not_fit_say_so():
    with pytest.raises(InputError, match="disagree"):
        score_bound(QKNormConfig(), None, torch.ones(8), torch.ones(4), SPEC)
    with pytest.raises(InputError, match="divide"):
        score_bound(QKNormConfig(), None, torch.ones(3, 8), torch.ones(2, 8), SPEC)
    with pytest.raises(InputError, match="n_heads"):
        score_bound(QKNormConfig(scope="full"), None, torch.ones(8), torch.ones(8), SPEC)
    with pytest.raises(InputError, match="d_head"):
        score_bound(None, None, None, None, SPEC, clip_qkv=1.0)
    with pytest.raises(InputError, match="gain"):
        score_bound(QKNormConfig(), None, None, None, SPEC)


def test_bounds_of_a_capture_at_each_distance():
    model = tiny_model(layer_types=("sliding_attention", "full_attention"), window_size=9)
    cap = capture(model, random_tokens(40)[0])
    ds = bound_by_distance(cap)
    assert ds.attrs["analysis"] == "bound_by_distance"
    assert ds["bound"].dims == ("layer", "head", "distance")
    assert all({"units", "description", "formula"} <= set(ds[name].attrs) for name in ds)
    for layer in (0, 1):
        one, far = ds.sel(layer=layer), 9 if layer == 0 else 40
        gains = cap.constants(layer).gain_q, cap.constants(layer).gain_k
        rope, spec = model.cfg.rope_for(layer), cap.spec(layer)
        want = score_bound(QKNormConfig(scope="per_head"), rope, *gains, spec, distance=range(far))
        np.testing.assert_allclose(one["bound"][:, :far], want, rtol=1e-12)
        assert np.isnan(one["bound"][:, far:]).all()
        for head in range(4):
            s = cap.q(layer)[:, head].double() @ cap.k(layer)[:, head // 2].double().T * spec.scale
            for distance in range(far):
                at = s.diagonal(-distance)
                np.testing.assert_allclose(one["score_max"][head, distance], at.max(), rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(one["score_min"][head, distance], at.min(), rtol=1e-5, atol=1e-6)
    largest = np.maximum(ds["score_max"], -ds["score_min"])
    assert not (largest > ds["bound"] * (1 + 1e-5)).any()
    some = bound_by_distance(cap, layers=[1], distances=[32, 0, 4])
    assert some.identical(ds.sel(layer=[1], distance=[0, 4, 32]))
    with pytest.raises(InputError, match="distance 40 does not occur: they go up to 39"):
        bound_by_distance(cap, distances=[3, 40])


def test_a_bound_that_does_not_turn_is_the_same_everywhere():
    for changes in (
        {"rope": None},
        {"qk_norm": QKNormConfig(position="after_rope")},
        {"qk_norm": None, "attn_scores_soft_cap": 3.0},
    ):
        ds = bound_by_distance(capture(tiny_model(**changes), random_tokens(20)[0]))
        bound = ds["bound"].values
        np.testing.assert_allclose(bound, np.broadcast_to(bound[..., :1], bound.shape))


def test_layers_without_a_bound_by_distance_say_why():
    cap = capture(tiny_model(qk_norm=None), random_tokens(20)[0])
    with pytest.raises(InputError, match=r"layer 0: nothing limits q and k.*with_config\(qk_norm"):
        bound_by_distance(cap)
    with pytest.raises(StageError, match="layer 9"):
        bound_by_distance(cap, layers=[9])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1e-3, 0.3, 5.0, 300.0]), st.integers(1, 60))
def test_quantiles_lie_within_a_bin_of_the_scores_own(seed, size, n):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(n, 3, 4, generator=generator) * size, torch.randn(n, 1, 4, generator=generator)
    ds = attention_statistics(q, k, SPEC, groups=("scores",))
    levels = [0.0, 0.01, 0.25, 0.5, 0.9, 1.0]
    layered = xr.concat([ds, ds], "layer", data_vars="all")
    got = score_quantile(layered, levels)
    assert got.dims == ("layer", "head", "quantile")
    s = torch.einsum("ihd,jd->hij", q.double(), k[:, 0].double()) * SPEC.scale
    left, right = ds.score_bin_left.values, ds.score_bin_right.values
    for h in range(3):
        want = np.quantile(s[h][visible(n, n)].numpy(), levels, method="inverted_cdf")
        for level, value in zip(got.values[0, h], want, strict=True):
            home = np.searchsorted(right, value * (1 + 1e-6) if value > 0 else value, side="right")
            assert left[max(home - 1, 0)] <= level <= right[min(home + 1, len(right) - 1)]


def test_quantiles_ask_for_what_they_need():
    ds = attention_statistics(torch.randn(4, 1, 4), torch.randn(4, 1, 4), SPEC, groups=("rows",))
    with pytest.raises(InputError, match="scores"):
        score_quantile(ds, 0.5)
    with pytest.raises(InputError, match="give a number from 0 to 1"):
        score_quantile(ds, 1.5)
