"""Every recipe against a pattern edited by its definition in dense float64, in rows and in full mode."""

from types import SimpleNamespace

import pytest
import torch
from dense import dense_pattern, dense_scores, dense_z
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hooked import random_tokens, tiny_model
from transformer_lens.hook_points import HookPoint

from hooks import AttentionSpec, ConfigError, recipes
from hooks.errors import InputError
from hooks.modules.attention import attend_hooked

POINTS = ("hook_attn_scores", "hook_pattern", "hook_attn_scores_rows", "hook_pattern_rows")
SCORE_POINTS = ("hook_attn_scores_rows", "hook_attn_scores")
NEEDLE, READERS, HIDDEN = [3, 7, 11], range(5, 30), [0, 2, 9, 10, 20]


def renormalised(pattern, kept):
    """The pattern on the kept keys alone; a row that keeps nothing is zeros."""
    pattern = torch.where(kept, pattern, 0)
    total = pattern.sum(-1, keepdim=True)
    return pattern / torch.where(total > 0, total, 1)


def top(scores, k):
    """The k largest scores of each row, by their rank."""
    return scores.argsort(-1, descending=True).argsort(-1) < k


def among(positions, chosen):
    return (positions[..., None] == torch.tensor(list(chosen))).any(-1)


# Each: the recipe, and the pattern that it means, from scores [head query key] and positions [query 1] and [1 key].
CASES = {
    "remove_sink": (lambda **o: recipes.remove_sink(2, **o), lambda s, i, j: renormalised(dense_pattern(s), j >= 2)),
    "remove_sink_from_5": (
        lambda **o: recipes.remove_sink(first_position=5, **o),
        lambda s, i, j: renormalised(dense_pattern(s), j != 5),
    ),
    "limit_distance": (
        lambda **o: recipes.limit_distance(4, **o),
        lambda s, i, j: renormalised(dense_pattern(s), (i - j).abs() <= 4),
    ),
    "keep_top_k": (lambda **o: recipes.keep_top_k(3, **o), lambda s, i, j: renormalised(dense_pattern(s), top(s, 3))),
    "knock_out": (
        lambda **o: recipes.knock_out(READERS, HIDDEN, **o),
        lambda s, i, j: renormalised(dense_pattern(s), ~(among(i, READERS) & among(j, HIDDEN))),
    ),
    "boost_keys": (
        lambda **o: recipes.boost_keys(torch.tensor(NEEDLE), 1.5, **o),
        lambda s, i, j: renormalised(dense_pattern(s) * (among(j, NEEDLE) * 1.5).double().exp(), s > -torch.inf),
    ),
    "cap_scores": (lambda **o: recipes.cap_scores(0.4, **o), lambda s, i, j: dense_pattern(s.clamp(max=0.4))),
    "distance_temperature": (
        lambda **o: recipes.distance_temperature(lambda distance: 0.5 + distance / 8, **o),
        lambda s, i, j: dense_pattern(s / (0.5 + (i - j).abs().double() / 8)),
    ),
}


def run(point, recipe, q, k, v, spec, **where):
    """z past a recipe on one of the points."""
    points = SimpleNamespace(**{name: HookPoint() for name in POINTS})
    for name in POINTS:
        getattr(points, name).name = f"blocks.0.attn.{name}"
    getattr(points, point).add_hook(recipe)
    return attend_hooked(points, q, k, v, spec, **where)


def dense(meaning, heads, q, k, v, spec, query_start=0, key_mask=None, query_positions=None, key_positions=None):
    """The same in dense float64."""
    rows = []
    for b in range(len(q)):
        i = torch.arange(query_start, query_start + q.shape[1]) if query_positions is None else query_positions[b]
        j = torch.arange(k.shape[1]) if key_positions is None else key_positions[b]
        scores = dense_scores(
            q[b], k[b], spec.scale, causal=spec.causal, window=spec.window, softcap=spec.softcap,
            query_start=query_start, key_mask=None if key_mask is None else key_mask[b],
        )  # fmt: skip
        pattern, edited = dense_pattern(scores), meaning(scores, i[:, None], j[None, :])
        chosen = among(torch.arange(len(scores)), range(len(scores)) if heads is None else heads)
        rows.append(dense_z(torch.where(chosen[:, None, None], edited, pattern), v[b]))
    return torch.stack(rows)


@st.composite
def inputs(draw, dtype=torch.float64):
    """q, k, v, a spec, where they stand, and the heads to edit: GQA, windows, offsets, padding, positions."""
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    n, d_head, start = draw(st.integers(1, 150)), draw(st.sampled_from([3, 8, 17])), draw(st.integers(0, 9))
    n_keys = n + start
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    q = torch.randn(batch, n, kv_heads * group, d_head, generator=generator, dtype=dtype)
    k, v = (torch.randn(batch, n_keys, kv_heads, d_head, generator=generator, dtype=dtype) for _ in range(2))
    spec = AttentionSpec(
        scale=draw(st.floats(0.1, 2)),
        causal=draw(st.booleans()),
        window=draw(st.none() | st.integers(1, 40)),
        softcap=draw(st.sampled_from([None, 2.0])),
    )
    where = {"query_start": start}
    place = draw(st.sampled_from(["index", "shifted", "padded", "gaps"]))
    positions = torch.arange(n_keys).expand(batch, -1)
    if place == "padded":
        padding = torch.randint(0, n_keys, (batch,), generator=generator)
        where["key_mask"] = torch.arange(n_keys) >= padding[:, None]
        positions = (where["key_mask"].long().cumsum(-1) - 1).clamp(min=0)
    elif place == "shifted":
        positions = positions + draw(st.integers(1, 4))
    elif place == "gaps":
        positions = torch.randint(1, 4, (batch, n_keys), generator=generator).cumsum(-1) - 1
    if place != "index":
        where |= {"query_positions": positions[:, start:], "key_positions": positions}
    heads = draw(st.none() | st.sets(st.integers(0, kv_heads * group - 1), min_size=1).map(list))
    return (q, k, v, spec), where, heads


@pytest.mark.parametrize("name", CASES)
@given(case=inputs())
@settings(max_examples=25, deadline=None)
def test_recipes_equal_their_definition(name, case):
    arguments, where, heads = case
    recipe, meaning = CASES[name]
    expected = dense(meaning, heads, *arguments, **where)
    for point in SCORE_POINTS:
        z = run(point, recipe(heads=heads), *arguments, **where)
        torch.testing.assert_close(z, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_rows_equal_full_at_512_tokens_in_float32(name):
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, 512, 6, 16, generator=generator)
    k, v = (torch.randn(2, 512, 2, 16, generator=generator) for _ in range(2))
    recipe, meaning = CASES[name]
    spec = AttentionSpec(scale=0.25)
    rows, full = (run(point, recipe(heads=[0, 4]), q, k, v, spec) for point in SCORE_POINTS)
    torch.testing.assert_close(rows, full, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.double(), dense(meaning, [0, 4], q, k, v, spec), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("heads", [None, [1, 2]])
@pytest.mark.parametrize("point", SCORE_POINTS)
def test_gradients_equal_dense_autograd(name, heads, point):
    generator = torch.Generator().manual_seed(11)
    shapes = [(2, 66, 4, 8), (2, 70, 2, 8), (2, 70, 2, 8)]
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    weight = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    recipe, meaning = CASES[name]
    spec, where = AttentionSpec(scale=0.5, window=50), {"query_start": 4}
    results = []
    for z in (
        run(point, recipe(heads=heads), *leaves, spec, **where),
        dense(meaning, heads, *leaves, spec, **where),
    ):
        results.append(torch.autograd.grad((z * weight).sum(), leaves))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("point", SCORE_POINTS)
def test_a_temperature_can_be_learned(point):
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 70, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    slope = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    spec = AttentionSpec(scale=1.0)
    recipe = recipes.distance_temperature(lambda distance: 1 + slope * distance)
    ours = run(point, recipe, q.clone().requires_grad_(), k, v, spec).square().sum()
    distance = (torch.arange(70)[:, None] - torch.arange(70)).abs()
    scores = dense_scores(q[0], k[0], 1.0)
    finite = scores.masked_fill(scores == -torch.inf, 0) / (1 + slope * distance)
    pattern = torch.softmax(finite.masked_fill(scores == -torch.inf, -torch.inf), -1)
    expected = dense_z(pattern, v[0]).square().sum()
    gradients = [torch.autograd.grad(total, slope)[0] for total in (ours, expected)]
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("point", SCORE_POINTS)
def test_rows_left_without_a_key_are_zeros_with_zero_gradients(dtype, point):
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 9, 2, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    z = run(point, recipes.remove_sink(4, heads=[1]), q, k, v, AttentionSpec(scale=1.0))
    assert bool((z[:, :4, 1] == 0).all())
    assert bool((z[:, :4, 0] != 0).all())
    gradients = torch.autograd.grad(z.float().sum(), (q, k, v))
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert bool((gradients[0][:, :4, 1] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_low_precision_follows_the_exact_edit(name, dtype):
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 40, 2, 8, generator=generator).to(dtype) for _ in range(3))
    recipe, meaning = CASES[name]
    spec = AttentionSpec(scale=0.3)
    if name == "keep_top_k":  # which score is the third largest is decided by rounding
        assert bool(run(SCORE_POINTS[0], recipe(), q, k, v, spec).isfinite().all())
        return
    expected = dense(meaning, None, q, k, v, spec)
    for point in SCORE_POINTS:
        torch.testing.assert_close(run(point, recipe(), q, k, v, spec).double(), expected, atol=0.04, rtol=0.04)


def test_edits_beyond_float16_stay_finite():
    q, k, v = (torch.full((1, 6, 1, 4), 10.0, dtype=torch.float16) for _ in range(3))
    spec = AttentionSpec(scale=1.0)
    for recipe in (
        recipes.boost_keys([2], 1e6),
        recipes.boost_keys([2], -1e6),
        recipes.distance_temperature(lambda distance: 1e-4 + 0 * distance),
        recipes.cap_scores(-1e6),
    ):
        z = run("hook_attn_scores_rows", recipe, q, k, v, spec)
        torch.testing.assert_close(z, v)


def test_learned_sinks_stay():
    generator = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(1, 20, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    sinks = torch.tensor([0.5, -1.0], dtype=torch.float64)
    scores = dense_scores(q[0], k[0], 0.4)
    scores[:, :, 0] = -torch.inf
    expected = dense_z(dense_pattern(scores, sinks), v[0])
    for point in SCORE_POINTS:
        z = run(point, recipes.remove_sink(), q, k, v, AttentionSpec(scale=0.4, sinks=sinks))
        torch.testing.assert_close(z[0], expected, atol=1e-9, rtol=0)


def test_ties_with_the_kth_are_kept():
    q, v = torch.zeros(1, 5, 1, 2), torch.arange(10.0).view(1, 5, 1, 2)
    for point in SCORE_POINTS:
        z = run(point, recipes.keep_top_k(2), q, q, v, AttentionSpec(scale=1.0))
        torch.testing.assert_close(z[0, -1, 0], v[0, :, 0].mean(0))


def padded_batch():
    """Tokens of two sequences, one of them padded on the left."""
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[1, :17] = 0
    return random_tokens(90, batch=2), mask


@pytest.mark.parametrize("name", CASES)
def test_in_a_model_rows_equal_full_with_windows_and_padding(name):
    model = tiny_model(layer_types=("sliding_attention", "full_attention"), window_size=12)
    tokens, mask = padded_batch()
    recipe = CASES[name][0](heads=[0, 3])
    logits = [
        model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=[(f"blocks.*.attn.{point}", recipe)])
        for point in SCORE_POINTS
    ]
    real = mask.bool()
    torch.testing.assert_close(logits[0][real], logits[1][real], atol=2e-4, rtol=1e-4)
    assert (logits[0] - model(tokens, attention_mask=mask))[real].abs().max() > 1e-2
    # The padded sequence is edited as it would be on its own.
    alone = model.run_with_hooks(tokens[1:, 17:], fwd_hooks=[(f"blocks.*.attn.{SCORE_POINTS[0]}", recipe)])
    torch.testing.assert_close(logits[0][1:, 17:], alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("point", SCORE_POINTS)
def test_removing_the_sink_everywhere_equals_deleting_it(point):
    model, tokens = tiny_model(), random_tokens(70)
    logits = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.*.attn.{point}", recipes.remove_sink(3))])
    torch.testing.assert_close(logits[:, 3:], model(tokens[:, 3:]), atol=2e-4, rtol=1e-4)


def test_full_points_know_their_positions():
    model, (tokens, mask) = tiny_model(), padded_batch()
    seen = []
    hooks = [(f"blocks.0.attn.{p}", lambda t, hook: seen.append(dict(hook.ctx))) for p in POINTS[:2]]
    model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks)
    model.run_with_hooks(tokens, position_ids=torch.arange(90) + 5, fwd_hooks=hooks)
    padded = (mask.cumsum(-1) - 1).clamp(min=0)
    for ctx, expected in zip(seen, [padded, padded, torch.arange(90) + 5, torch.arange(90) + 5], strict=True):
        assert torch.equal(ctx["query_positions"], expected)
        assert torch.equal(ctx["key_positions"], expected)


@pytest.mark.parametrize("point", SCORE_POINTS)
def test_gradients_do_not_depend_on_hooks_that_are_still_there(point):
    tokens, gradients = random_tokens(70), []
    for inside in (True, False):
        model = tiny_model()
        with model.hooks(fwd_hooks=[(f"blocks.*.attn.{point}", recipes.remove_sink())]):
            loss = model(tokens, return_type="loss")
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        gradients.append(model.blocks[0].attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients, atol=0, rtol=0)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.remove_sink(0), "sink_size is 0: give an integer ≥ 1"),
        (lambda: recipes.remove_sink(first_position=-1), "first_position is -1"),
        (lambda: recipes.limit_distance(-1), "max_distance is -1"),
        (lambda: recipes.limit_distance(2.5), "max_distance is 2.5"),
        (lambda: recipes.keep_top_k(True), "k is True"),
        (lambda: recipes.knock_out([], [1]), "queries is"),
        (lambda: recipes.knock_out([1], [-1]), "keys holds a value that is -1"),
        (lambda: recipes.knock_out(1, [1]), "queries is 1: give a sequence"),
        (lambda: recipes.boost_keys(torch.tensor([0.5]), 1.0), "keys is"),
        (lambda: recipes.boost_keys(torch.tensor([-2]), 1.0), "keys is"),
        (lambda: recipes.boost_keys([1], float("nan")), "bias is nan"),
        (lambda: recipes.cap_scores(float("inf")), "cap is inf"),
        (lambda: recipes.distance_temperature(2.0), "temperature is 2.0"),
        (lambda: recipes.cap_scores(1.0, heads=[]), "heads is"),
        (lambda: recipes.cap_scores(1.0, heads=["0"]), "heads holds a value that is '0'"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("point", "recipe", "message"),
    [
        ("hook_attn_scores", recipes.remove_sink(heads=[0, 4]), "no head 4: its 4 heads"),
        ("hook_pattern_rows", recipes.remove_sink(), "hook_pattern_rows does not hold scores"),
        ("hook_z", recipes.cap_scores(1.0), "hook_z does not hold scores"),
        ("hook_attn_scores_rows", recipes.distance_temperature(lambda d: d), "temperature at distance 0 is 0.0"),
        ("hook_attn_scores_rows", recipes.distance_temperature(lambda d: d / 0), "is (nan|inf): it must be finite"),
        ("hook_attn_scores_rows", recipes.distance_temperature(lambda d: 2.0), "temperature returned 2.0"),
        ("hook_attn_scores_rows", recipes.distance_temperature(lambda d: d[..., :1] + 1), "returned a tensor of shape"),
    ],
)
def test_what_cannot_be_run_is_named(point, recipe, message):
    with pytest.raises(InputError, match=message):
        tiny_model().run_with_hooks(random_tokens(6), fwd_hooks=[(f"blocks.1.attn.{point}", recipe)])
