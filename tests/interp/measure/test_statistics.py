"""attention_statistics against dense float64, closed forms, and its promises about blocks, dtypes and errors."""

import io
import math
import sys

import numpy as np
import pytest
import torch
from dense import dense_scores, visible
from dense_statistics import check, dense_statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from problem import Problem

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError
from interp.common import progress
from interp.measure.schema import GROUPS, VARIABLES
from interp.measure.statistics import attention_statistics
from interp.measure.work import Pass


@st.composite
def problems(draw):
    """q, k, v, w_o, a spec and keyword arguments of any shape that a model can have."""
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 9]))
    heads, d = kv_heads * group, draw(st.sampled_from([4, 16, 33]))
    n_q = draw(st.one_of(st.integers(1, 9), st.integers(10, 150)))
    offset = draw(st.sampled_from([0, 0, 1, 40]))
    n_k = n_q + offset
    size = draw(st.sampled_from([0.1, 1.0, 4.0, 8.0]))
    q, k = randn(n_q, heads, d) * size, randn(n_k, kv_heads, d) * size
    scale = draw(st.sampled_from([d**-0.5, 0.07]))
    scale = min(scale, 300 / float(q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max()))
    spec = AttentionSpec(
        scale=scale,
        causal=draw(st.sampled_from([True, True, True, False])),
        window=draw(st.sampled_from([None, None, 1, 7, 64])),
        softcap=draw(st.sampled_from([None, None, 5.0])),
        sinks=draw(st.sampled_from([None, randn(heads)])),
        alibi_slopes=draw(st.sampled_from([None, None, tuple(0.5 ** (1 + h) for h in range(heads))])),
    )
    kwargs = {"query_start": offset, "map_size": draw(st.sampled_from([1, 5, 32, 128]))}
    padding = draw(st.sampled_from(["none", "none", "left", "holes"]))
    if padding == "left" and n_k > 3:
        kwargs["key_mask"] = torch.arange(n_k) >= n_k // 3
    elif padding == "holes":
        kwargs["key_mask"] = torch.rand(n_k, generator=generator) > 0.3
        kwargs["key_mask"][0] = True
    if draw(st.booleans()):
        kwargs["documents"] = sorted({0, *draw(st.lists(st.integers(0, n_k - 1), max_size=5))})
    layout = draw(st.sampled_from(["default", "default", "shifted", "gaps", "packed"]))
    base = torch.arange(n_k)
    positions = {
        "default": None,
        "shifted": base + 40_000,
        "gaps": base + (torch.rand(n_k, generator=generator) < 0.2).cumsum(0) * 3,
        "packed": base % (n_k // 2 + 1),
    }[layout]
    if positions is not None:
        kwargs |= {"key_positions": positions, "query_positions": positions[offset:]}
    w_o = draw(st.sampled_from([None, randn(heads, d, 6), randn(heads, d, 50)]))
    kwargs |= {"v": randn(n_k, kv_heads, d), "w_o": w_o}
    return Problem((q, k, spec, kwargs, draw(st.sampled_from([3, 17, 64]))))


@settings(max_examples=60, deadline=None)
@given(
    problems(),
    st.sampled_from([torch.float32, torch.float32, torch.float64]),
    st.sampled_from(["auto", "portable", "portable"]),
)
def test_equals_dense_float64(problem, dtype, backend):
    q, k, spec, kwargs, height = problem
    q, k = q.to(dtype), k.to(dtype)
    want = dense_statistics(q, k, spec, **kwargs)
    budget = height * 16 * (q.shape[1] // k.shape[1]) * k.shape[0]
    ds = attention_statistics(q, k, spec, memory_budget=budget, backend=backend, **kwargs)
    check(ds, *want, exact_counts=dtype == torch.float64)


@settings(max_examples=15, deadline=None)
@given(problems())
def test_block_size_does_not_matter(problem):
    q, k, spec, kwargs, height = problem
    narrow = height * 16 * (q.shape[1] // k.shape[1]) * k.shape[0]
    one = attention_statistics(q, k, spec, memory_budget=narrow, **kwargs)
    other = attention_statistics(q, k, spec, memory_budget=2**26, **kwargs)
    scale = max(1.0, float(np.abs(np.nan_to_num(one.max_score)).max()) / 50)
    for name in one.data_vars:
        if name in ("argmax_key", "score_count", "positional_r2", "score_m2"):
            continue
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5 * scale, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("backend", ["portable", "fused"])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 9), (False, None), (False, 5)])
def test_packed_documents_are_measured_as_each_alone(backend, causal, window):
    torch.manual_seed(2)
    n, starts = 301, [0, 1, 130, 200, 203]
    q, k, v = torch.randn(n, 6, 16), torch.randn(n, 2, 16), torch.randn(n, 2, 16)
    spec = AttentionSpec(scale=0.5, causal=causal, window=window, sinks=torch.randn(6))
    ds = attention_statistics(q, k, spec, v=v, documents=torch.tensor(starts), backend=backend)
    alone = [
        attention_statistics(q[a:b], k[a:b], spec, v=v[a:b], backend=backend)
        for a, b in zip(starts, [*starts[1:], n], strict=True)
    ]
    for name in (name for name in ds.data_vars if "query" in ds[name].dims or "key" in ds[name].dims):
        axis = ds[name].dims.index("query" if "query" in ds[name].dims else "key")
        parts = [
            one[name].values + (start if name == "argmax_key" else 0) for start, one in zip(starts, alone, strict=True)
        ]
        np.testing.assert_allclose(ds[name].values, np.concatenate(parts, axis), rtol=1e-5, atol=1e-6, err_msg=name)
    for name in ("count", "attention", "attention_value"):
        want = sum(one[name].reindex(distance=ds.distance, fill_value=0) for one in alone)
        np.testing.assert_allclose(ds[name], want.transpose(*ds[name].dims), rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(ds.score_count, sum(one.score_count for one in alone))
    assert ds.backend == backend


@pytest.mark.parametrize("documents", [[], [1, 5], [0, 5, 3], [0, 9], [0, 2.5], "0", 3])
def test_documents_that_are_none_are_refused(documents):
    q = torch.zeros(9, 1, 4)
    with pytest.raises(InputError, match=r"^documents="):
        attention_statistics(q, q, AttentionSpec(scale=1.0), documents=documents)


def test_scores_of_several_hundred():
    torch.manual_seed(0)
    q, k = torch.randn(200, 4, 256) * 6, torch.randn(200, 2, 256) * 6
    scale = 300 / dense_scores(q, k, 1.0).abs().masked_fill(~visible(200, 200), 0).max().item()
    spec = AttentionSpec(scale=scale)
    want = dense_statistics(q, k, spec)
    check(attention_statistics(q, k, spec), *want, exact_counts=False)


def test_bfloat16_inputs_are_measured_as_they_are():
    torch.manual_seed(1)
    q, k, v = (torch.randn(77, heads, 32).bfloat16() for heads in (6, 2, 2))
    spec = AttentionSpec(scale=32**-0.5, window=20)
    low, exact = (attention_statistics(q.to(t), k.to(t), spec, v=v.to(t)) for t in (torch.bfloat16, torch.float32))
    assert low.identical(exact)


def test_uniform_attention():
    n = 150
    q, k = torch.zeros(n, 2, 8), torch.randn(n, 1, 8)
    ds = attention_statistics(q, k, AttentionSpec(scale=1.0))
    i = np.arange(n)
    harmonic = np.array([(1 / np.arange(j + 1, n + 1)).sum() for j in range(n)])
    for h in range(2):
        np.testing.assert_allclose(ds.entropy[h], np.log(i + 1), atol=1e-6)
        np.testing.assert_allclose(ds.lse[h], np.log(i + 1), atol=1e-6)
        np.testing.assert_allclose(ds.mean_distance[h], i / 2, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ds.local_mass[h], np.minimum(64 / (i + 1), 1), rtol=1e-6)
        np.testing.assert_allclose(ds.sink_mass[h, :, 1], np.minimum(4 / (i + 1), 1), rtol=1e-6)
        np.testing.assert_allclose(ds.received[h], harmonic, rtol=1e-6)
        np.testing.assert_allclose(ds.attention[h], harmonic, rtol=1e-6)
    assert (ds.varentropy == 0).all()
    assert (ds.score_m2 == 0).all()
    assert np.isnan(ds.positional_r2).all()
    assert ds["count"].values.tolist() == list(range(n, 0, -1))
    assert ds.score_count.sum().item() == 2 * n * (n + 1) // 2


def test_a_perfect_sink():
    n = 100
    q, k = torch.zeros(n, 1, 4), torch.zeros(n, 1, 4)
    q[..., 0], k[0, :, 0] = 10.0, 20.0
    ds = attention_statistics(q, k, AttentionSpec(scale=1.0))
    np.testing.assert_allclose(ds.sink_mass, 1, atol=1e-6)
    np.testing.assert_allclose(ds.entropy, 0, atol=1e-6)
    np.testing.assert_allclose(ds.mean_distance[0], np.arange(n), rtol=1e-6)
    np.testing.assert_allclose(ds.received[0, 0], n, rtol=1e-6)
    assert (ds.argmax_key == 0).all()
    assert ds.score_max.max() == 200


def test_a_window_of_one_and_a_single_token():
    q, k = torch.randn(40, 2, 8), torch.randn(40, 2, 8)
    ds = attention_statistics(q, k, AttentionSpec(scale=1.0, window=1))
    assert ds.sizes["distance"] == 1
    np.testing.assert_allclose(ds.received, 1)
    np.testing.assert_allclose(ds.max_prob, 1)
    np.testing.assert_allclose(ds.score_mean[:, 0], (q * k).sum(-1).mean(0), rtol=1e-5, atol=1e-6)
    one = attention_statistics(q[:1], k[:1], AttentionSpec(scale=1.0))
    assert one.entropy.values.tolist() == [[0.0], [0.0]]
    assert one.map_mean.shape == (2, 1, 1)


def test_left_padding_equals_the_sequence_without_it():
    torch.manual_seed(2)
    pad, n = 13, 50
    q, k, v = torch.randn(n, 4, 16), torch.randn(n, 2, 16), torch.randn(n, 2, 16)
    junk = lambda x: torch.cat([torch.full((pad, *x.shape[1:]), 1e4), x])  # noqa: E731
    positions = (torch.arange(pad + n) - pad).clamp_min(1)
    spec = AttentionSpec(scale=0.25, window=20)
    alone = attention_statistics(q, k, spec, v=v, groups=("rows", "keys", "distances", "scores"))
    padded = attention_statistics(
        junk(q),
        junk(k),
        spec,
        v=junk(v),
        groups=("rows", "keys", "distances", "scores"),
        key_mask=torch.arange(pad + n) >= pad,
        key_positions=torch.arange(pad + n) - pad,
        query_positions=positions.where(torch.arange(pad + n) < pad, torch.arange(pad + n) - pad),
    )
    assert np.isnan(padded.entropy[:, :pad]).all()
    assert (padded.argmax_key[:, :pad] == -1).all()
    assert (padded.received[:, :pad] == 0).all()
    for name in alone.data_vars:
        got = padded[name].values
        if {"query", "key"} & set(alone[name].dims):
            got = got[:, pad:]
        shift = pad if name == "argmax_key" else 0
        np.testing.assert_allclose(got - shift, alone[name].values, rtol=1e-6, atol=1e-6, err_msg=str(name))


def test_groups_compute_only_their_variables():
    q, k = torch.randn(9, 2, 4), torch.randn(9, 1, 4)
    everything = attention_statistics(q, k, AttentionSpec(scale=1.0), v=k)
    assert set(everything.data_vars) == set(VARIABLES)
    for group in GROUPS:
        ds = attention_statistics(q, k, AttentionSpec(scale=1.0), v=k, groups=(group,))
        assert set(ds.data_vars) == {name for name, row in VARIABLES.items() if row.group == group}
        for name in ds.data_vars:
            np.testing.assert_allclose(ds[name], everything[name], rtol=1e-6, err_msg=str(name))
            assert ds[name].attrs["units"]
            assert ds[name].attrs["description"]
            assert ds[name].attrs["formula"]


def test_one_group_may_be_given_by_its_name():
    q, k = torch.randn(9, 2, 4), torch.randn(9, 1, 4)
    one, several = (attention_statistics(q, k, AttentionSpec(scale=1.0), groups=g) for g in ("keys", ["keys"]))
    assert one.identical(several)


def test_chosen_queries_are_measured_alone():
    torch.manual_seed(3)
    q, k = torch.randn(60, 2, 8), torch.randn(60, 1, 8)
    spec = AttentionSpec(scale=0.3)
    every = attention_statistics(q, k, spec)
    some = attention_statistics(q, k, spec, queries=[50, 3, 17])
    assert some["query"].values.tolist() == [3, 17, 50]
    np.testing.assert_allclose(some.entropy, every.entropy.isel(query=[3, 17, 50]), rtol=1e-5, atol=1e-6)
    assert some["count"].values.sum() == 4 + 18 + 51
    assert "received_stderr" not in some


def test_subsampled_queries_are_unbiased_and_know_their_error():
    torch.manual_seed(4)
    n, heads = 800, 16
    q, k = torch.randn(n, heads, 8), torch.randn(n, heads, 8)
    k[:, :, 0] += 3 * torch.sin(torch.arange(n) / 30)[:, None]
    spec = AttentionSpec(scale=0.5)
    exact = attention_statistics(q, k, spec, v=k, map_size=4)
    some = attention_statistics(q, k, spec, v=k, map_size=4, queries=160)
    assert 130 <= some.sizes["query"] <= 160  # groups may draw the same row
    assert math.isclose(some["count"].sum(), exact["count"].sum(), rel_tol=0.02)
    assert math.isclose(some.score_count.sum(), exact.score_count.sum(), rel_tol=0.02)
    for name in ("received", "received_value", "attention", "attention_value", "score_mean", "map_mean"):
        z = ((some[name] - exact[name]) / some[f"{name}_stderr"]).values.ravel()
        z = z[np.isfinite(z)]
        assert z.size > 100
        # Far distances and late keys are seen by few groups, so tails are heavy: judge the middle.
        assert 0.4 < np.median(np.abs(z)) < 1.0, name
        assert abs(np.median(z)) < 0.4, name
        if name == "score_mean":
            continue
        relative = (some[name] - exact[name]).sum() / np.abs(exact[name]).sum()
        assert abs(relative) < 0.02, name


def test_a_sample_of_noise_is_not_taken_for_position():
    """Means by distance of a few scores differ by chance; that is no positional effect, and takes no variance away."""
    torch.manual_seed(5)
    n, heads = 600, 24
    q, k = torch.randn(n, heads, 16), torch.randn(n, heads, 16)
    exact = attention_statistics(q, k, AttentionSpec(scale=0.25), groups="distances")
    some = attention_statistics(q, k, AttentionSpec(scale=0.25), groups="distances", queries=np.int64(24))
    assert float(some.positional_r2.mean() - exact.positional_r2.mean()) < 0.01
    turn = torch.arange(n)[:, None] / 30 + 6.28 * torch.rand(heads)  # scores that follow the distance, and q's place
    q[:, :, 0], k[:, :, 0] = 8 * torch.sin(turn), 8 * torch.sin(turn)
    exact = attention_statistics(q, k, AttentionSpec(scale=0.25), groups="distances")
    some = attention_statistics(q, k, AttentionSpec(scale=0.25), groups="distances", queries=60)
    assert float(some.positional_r2.mean()) == pytest.approx(float(exact.positional_r2.mean()), rel=0.05)
    near = some["count"].values[:100] > 0
    ratio = (some.score_m2 / exact.score_m2).values[:, :100][:, near]
    assert np.nanmean(ratio) == pytest.approx(1, abs=0.05)
    once = attention_statistics(q, k, AttentionSpec(scale=0.25), groups="distances", queries=1)
    assert once.positional_r2.isnull().all() and once.score_m2.isnull().all()


@pytest.mark.parametrize("backend", ["fused", "portable"])
def test_sampled_rows_of_a_window_cost_the_window(backend, monkeypatch):
    """Rows far apart share no keys: blocks of them would see mostly what none of them attends to."""
    n, window, widths = 20_000, 64, []
    q, k = torch.randn(n, 1, 4), torch.randn(n, 1, 4)
    made = Pass.__init__
    monkeypatch.setattr(
        Pass,
        "__init__",
        lambda self, **given: made(self, **given) or widths.append(self.visibility.band_width(self.height)),
    )
    spec, rows = AttentionSpec(scale=0.5, window=window), range(0, n, 100)
    some = attention_statistics(q, k, spec, groups=("rows", "keys"), queries=rows, backend=backend)
    assert max(widths) <= 2 * window
    every = attention_statistics(q, k, spec, groups=("rows", "keys"), backend=backend)
    assert widths[-1] > window
    np.testing.assert_allclose(some["entropy"], every["entropy"].isel(query=list(rows)), rtol=1e-5, atol=1e-6)


def test_a_map_needs_a_cell():
    q = torch.randn(9, 1, 4)
    for wrong in (0, -3):
        with pytest.raises(InputError, match=f"map_size={wrong}"):
            attention_statistics(q, q, AttentionSpec(scale=1.0), map_size=wrong)


def test_progress_counts_every_row_of_every_head():
    seen = []
    q, k = torch.randn(50, 4, 8), torch.randn(50, 2, 8)
    attention_statistics(
        q, k, AttentionSpec(scale=1.0), memory_budget=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (200, 200)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_bar_on_a_terminal_and_never_two(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    class Bar:
        task_ids = (0,)

        def update(self, task, completed):
            pass

        def stop(self):
            pass

    bars = []
    monkeypatch.setattr(progress, "_bar", lambda description, total: bars.append((description, total)) or Bar())
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    q, spec = torch.randn(50, 2, 8), AttentionSpec(scale=1.0)
    attention_statistics(q, q, spec, memory_budget=1, backend="portable")
    assert bars == [("measuring attention", 100)]
    bars.clear()
    for _ in progress.track([0, 1, 2], "layers"):
        attention_statistics(q, q, spec, memory_budget=1, backend="portable")
    assert bars == [("layers", 3)]
    attention_statistics(q, q, spec, memory_budget=1, backend="portable", progress=lambda done, total: None)
    assert len(bars) == 1


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input_names_the_tensor_and_where(name, value):
    tensors = {"q": torch.randn(5, 2, 4), "k": torch.randn(5, 2, 4), "v": torch.randn(5, 2, 4)}
    tensors[name][3, 1, 2] = value
    with pytest.raises(InputError, match=f"^{name} holds NaN or infinity, first at row 3, head 1"):
        attention_statistics(tensors["q"], tensors["k"], AttentionSpec(scale=1.0), v=tensors["v"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.randn(5, 3, 4)}, "multiple"),
        ({"q": torch.randn(5, 2, 8)}, "last axes"),
        ({"q": torch.randn(1, 5, 2, 4)}, "batch axis"),
        ({"q": torch.zeros(5, 2, 4, dtype=torch.int64)}, "floating point"),
        ({"v": torch.randn(4, 2, 4)}, "positions and heads"),
        ({"w_o": torch.randn(2, 4, 6)}, "come with v"),
        ({"groups": ("rows", "columns")}, "columns.*give one or several of 'rows'"),
        ({"groups": "row"}, "'row': give one or several of 'rows', 'keys', 'distances', 'map', 'scores'"),
        ({"groups": ()}, r"\(\): give one or several"),
        ({"groups": None}, "None: give one or several"),
        ({"queries": 0}, "at least 1"),
        ({"queries": [7]}, "from 0 to 4"),
        ({"queries": []}, "name at least one row"),
        ({"key_mask": torch.ones(4)}, "key_mask"),
        ({"query_positions": torch.arange(4)}, "query_positions"),
        ({"key_positions": torch.arange(5) * 10**6}, "mostly empty"),
        ({"spec": AttentionSpec(scale=1.0, alibi_slopes=(1.0,))}, "alibi_slopes has 1"),
        ({"q": torch.full((5, 2, 4), 1e30), "k": torch.full((5, 2, 4), 1e30)}, "overflows"),
    ],
)
def test_bad_input_says_what_to_do(change, message):
    arguments = {"q": torch.randn(5, 2, 4), "k": torch.randn(5, 2, 4), "spec": AttentionSpec(scale=1.0)} | change
    with pytest.raises(InputError, match=message):
        attention_statistics(**arguments)


@pytest.mark.parametrize("backend", ["portable", "fused"])
@pytest.mark.parametrize("sink", [20.0, 60.0, 100.0, 700.0])
def test_a_sink_far_above_every_score_leaves_the_moments_of_the_keys(sink, backend):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(64, 1, 16, generator=generator) for _ in "qk")
    found = attention_statistics(q, k, AttentionSpec(0.25, sinks=torch.tensor([sink])), backend=backend)
    scores = (q[:, 0].double() @ k[:, 0].double().T * 0.25).masked_fill(~torch.ones(64, 64).tril().bool(), -torch.inf)
    p = scores.softmax(-1)
    visible = scores.nan_to_num(neginf=0.0)
    mean = (p * visible).sum(-1, keepdim=True)
    variance = (p * (visible - mean).square()).sum(-1)
    lse = torch.logaddexp(scores.logsumexp(-1), torch.tensor(sink, dtype=torch.float64))
    np.testing.assert_allclose(found["varentropy"][0], variance, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["lse"][0], lse, rtol=1e-6)


@pytest.mark.parametrize("backend", ["fused", "portable"])
def test_scores_of_both_signs_leave_little_of_their_mean(backend):
    """±50 in equal numbers: a float32 sum of them was off by 1.8 times the documented error."""
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        q, k = torch.ones(130, 1, 4), torch.randn(130, 1, 1, generator=generator).sign()
        k = k * (1 + 0.01 * torch.rand(130, 1, 4, generator=generator))
        spec = AttentionSpec(scale=50 / float((q[:, 0] @ k[:, 0].T).abs().max()), causal=False)
        check(attention_statistics(q, k, spec, backend=backend), *dense_statistics(q, k, spec), exact_counts=False)


@pytest.mark.parametrize("backend", ["fused", "portable"])
def test_values_that_the_projection_nearly_takes_to_nothing(backend):
    """Their lengths are what float64 leaves, not what float32 rounds."""
    torch.manual_seed(0)
    q, k, v = torch.randn(40, 2, 16), torch.randn(40, 2, 16), 30 + 1e-3 * torch.randn(40, 2, 16)
    w_o = torch.randn(2, 16, 6)
    w_o[:, 0] = -w_o[:, 1:].sum(1)
    spec = AttentionSpec(scale=0.25)
    want = dense_statistics(q, k, spec, v=v, w_o=w_o)
    check(attention_statistics(q, k, spec, v=v, w_o=w_o, backend=backend), *want, exact_counts=False)
