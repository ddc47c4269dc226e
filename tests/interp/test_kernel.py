"""The fused pass: exact against dense float64, whatever the threads and blocks, and the same bits every time."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores, visible
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from hooks.attend import AttentionSpec
from hooks.errors import InputError
from interp.simd import LANES, vexp, vload, vstore
from interp.statistics import attention_statistics


@pytest.fixture(autouse=True)
def _threads():
    """Each test leaves torch's thread count as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@st.composite
def problems(draw):
    """q, k, a spec and keyword arguments that the fused pass covers."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    randn = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 9))
    heads, d = kv_heads * group, draw(st.sampled_from([4, 7, 64, 130, 256]))
    n_q = draw(st.one_of(st.integers(1, 40), st.integers(41, 300)))
    offset = draw(st.sampled_from([0, 0, 1, 63, 200]))
    n_k = n_q + offset
    q, k, v = randn(n_q, heads, d), randn(n_k, kv_heads, d), randn(n_k, kv_heads, d)
    # The largest |q||k| times scale bounds every score: above 32 they go through float64.
    bound = draw(st.sampled_from([0.5, 10.0, 31.0, 60.0, 300.0]))
    scale = bound / float(q.norm(dim=-1).max() * k.norm(dim=-1).max())
    spec = AttentionSpec(
        scale=scale,
        causal=draw(st.sampled_from([True, True, True, False])),
        window=draw(st.sampled_from([None, None, 1, 5, 100])),
        softcap=draw(st.sampled_from([None, None, 20.0])),
        sinks=draw(st.sampled_from([None, randn(heads) * 3])),
        alibi_slopes=draw(st.sampled_from([None, None, tuple(0.5 ** (1 + h) for h in range(heads))])),
    )
    kwargs = {"query_start": offset, "map_size": draw(st.sampled_from([1, 7, 128])), "v": v}
    if draw(st.booleans()) and n_k > 3:
        kwargs["key_mask"] = torch.arange(n_k) >= n_k // 3
    kwargs["queries"] = draw(st.sampled_from([None, None, range(0, n_q, 3)]))
    return q, k, spec, kwargs


def dense(q, k, spec, *, v, query_start, map_size, key_mask=None, queries=None):
    """The main statistics of the chosen rows by definition, float64."""
    n_q, n_k = len(q), len(k)
    rows = np.arange(n_q) if queries is None else np.asarray(queries)
    masks = {"causal": spec.causal, "window": spec.window, "query_start": query_start, "key_mask": key_mask}
    s = dense_scores(q, k, spec.scale, softcap=spec.softcap, alibi_slopes=spec.alibi_slopes, **masks)
    p = dense_pattern(s, spec.sinks).numpy()[:, rows]
    ok, s = visible(n_q, n_k, **masks).numpy()[rows], s.numpy()[:, rows]
    seen = ok.any(1)
    delta = (rows + query_start)[:, None] - np.arange(n_k)
    mass, x = p.sum(-1), np.where(ok, s, 0.0)
    with np.errstate(all="ignore"):
        mean = (p * x).sum(-1) / mass
        out = {
            "entropy": -np.where(p > 0, p * np.log(p), 0).sum(-1),
            "varentropy": (p * (x - mean[..., None]) ** 2).sum(-1) / mass,
            "mean_distance": (p * delta).sum(-1),
            "local_mass": (p * (abs(delta) < 64)).sum(-1),
            "max_prob": p.max(-1),
            "max_score": np.where(ok, s, -np.inf).max(-1),
            "min_score": np.where(ok, s, np.inf).min(-1),
        }
    out = {name: np.where(seen, values, np.nan) for name, values in out.items()}
    out["received"], out["received_max"] = p.sum(1), p.max(1)
    norm = np.repeat(v.double().norm(dim=-1).T.numpy(), q.shape[1] // k.shape[1], 0)
    out["received_value"] = out["received"] * norm
    low, high = delta[ok].min(initial=0), delta[ok].max(initial=0)
    index = delta - low
    by = lambda x: np.stack([np.bincount(index[ok], row[ok], minlength=high - low + 1) for row in x])  # noqa: E731
    count = by(np.ones_like(s))[0]
    with np.errstate(all="ignore"):
        out["score_mean"] = mean = by(x) / count
    spread = by((x - np.nan_to_num(mean)[:, np.clip(index, 0, high - low)]) ** 2)
    out |= {"count": count, "attention": by(p), "attention_value": by(p * norm[:, None])}
    out["score_std"] = np.sqrt(spread / np.maximum(count, 1))
    g_q, g_k = min(map_size, n_q), min(map_size, n_k)
    bins = (rows * g_q // n_q)[:, None] * g_k + np.arange(n_k) * g_k // n_k
    with np.errstate(all="ignore"):
        cells = np.bincount(bins[ok], minlength=g_q * g_k)
        total = np.stack([np.bincount(bins[ok], row[ok], minlength=g_q * g_k) for row in p])
        out["map_mean"] = (total / cells).reshape(-1, g_q, g_k)
    return out, abs(x).max(initial=0), int(ok.sum())


@settings(max_examples=30, deadline=None)
@given(problem=problems(), threads=st.sampled_from([1, 2, 3]), budget=st.sampled_from([2**14, 2**16, 2**25]))
def test_equals_dense_float64(problem, threads, budget):
    q, k, spec, kwargs = problem
    torch.set_num_threads(threads)
    ds = attention_statistics(q, k, spec, backend="fused", memory_budget=budget, **kwargs)
    want, largest, pairs = dense(q, k, spec, **kwargs)
    assert ds.attrs["backend"] == "fused"
    assert torch.get_num_threads() == threads
    assert (ds.score_count.sum("score_bin") == pairs).all()
    ds["score_std"] = (ds.score_m2 / np.maximum(ds["count"], 1)) ** 0.5
    tolerance = 1e-5 * max(1.0, largest / 50)
    for name, reference in want.items():
        np.testing.assert_allclose(ds[name], reference, rtol=tolerance, atol=tolerance, err_msg=name)


@settings(max_examples=10, deadline=None)
@given(problems(), st.sampled_from([1, 2]))
def test_same_bits_run_after_run(problem, threads):
    q, k, spec, kwargs = problem
    torch.set_num_threads(threads)
    first, second = (attention_statistics(q, k, spec, backend="fused", **kwargs) for _ in range(2))
    assert first.identical(second)


@pytest.mark.parametrize("window", [None, 700])
def test_more_keys_than_a_tile(window):
    torch.manual_seed(0)
    q, k = torch.randn(200, 2, 64), torch.randn(9001, 1, 64)
    k[3] *= 6
    spec = AttentionSpec(scale=0.125, window=window)
    kwargs = {"query_start": 8801, "map_size": 13}
    fused, exact = (
        attention_statistics(q.to(t), k.to(t), spec, **kwargs) for t in (torch.float32, torch.float64)
    )  # fmt: skip
    assert (fused.attrs["backend"], exact.attrs["backend"]) == ("fused", "portable")
    assert (fused.argmax_key == exact.argmax_key).all()
    for name in set(fused.data_vars) - {"argmax_key", "score_count"}:
        np.testing.assert_allclose(fused[name], exact[name], rtol=2e-5, atol=1e-5, err_msg=str(name))


def test_vexp():
    @njit
    def run(x, out):
        for i in range(0, x.size, LANES):
            vstore(out, i, vexp(vload(x, i)))

    x = -np.geomspace(1e-9, 86.9, 16 * 5000).astype(np.float32)
    x[0] = 0.0
    out = np.empty_like(x)
    run(x, out)
    assert out[0] == 1
    np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=1.5e-7)


def test_progress_counts_every_row_once_and_only_upwards():
    seen = []
    torch.set_num_threads(2)
    attention_statistics(
        torch.randn(500, 3, 8), torch.randn(500, 1, 8), AttentionSpec(scale=1.0), backend="fused",
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == sorted(seen) and seen[-1] == (1500, 1500)


def test_what_the_fused_pass_does_not_cover():
    q, k, spec = torch.randn(20, 2, 8), torch.randn(20, 1, 8), AttentionSpec(scale=1.0)
    holes = torch.arange(20) % 5 != 2
    for arguments in ((q.double(), k, spec, {}), (q, k, spec, {"key_mask": holes})):
        *tensors, kwargs = arguments
        assert attention_statistics(*tensors, **kwargs).attrs["backend"] == "portable"
        with pytest.raises(InputError, match="fused"):
            attention_statistics(*tensors, backend="fused", **kwargs)
    with pytest.raises(InputError, match="overflows"):
        attention_statistics(torch.full((4, 1, 8), 1e30), torch.full((4, 1, 8), 1e30), spec, backend="fused")
    with pytest.raises(InputError, match="choose from"):
        attention_statistics(q, k, spec, backend="gpu")


def test_the_portable_pass_never_imports_numba():
    code = (
        "import sys\nimport torch\nfrom hooks.attend import AttentionSpec\n"
        "from interp.statistics import attention_statistics\n"
        "x = torch.randn(5, 1, 4)\nattention_statistics(x, x, AttentionSpec(scale=1.0), backend='portable')\n"
        "print('numba' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
