"""The fused pass: exact against dense float64, whatever the threads and blocks, and the same bits every time."""

import ast
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores, visible
from guarded import on_guarded_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from problem import Problem

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError
from hooks.model import HookedTransformer
from interp.captures import capture
from interp.measure.fused import compiled
from interp.measure.fused import threads as fused_pass
from interp.measure.fused.buffers import Workspace
from interp.measure.fused.dot_products import ROWS
from interp.measure.fused.simd import LANES, vexp2, vload, vstore, vtanh
from interp.measure.statistics import attention_statistics


@pytest.fixture(autouse=True)
def _threads():
    """Each test leaves torch's thread count as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def _guards():
    """With GUARDED set, all memory that compiled code is given ends at a page that it must not touch."""
    with pytest.MonkeyPatch.context() as patch:
        if "GUARDED" in os.environ:
            measure = on_guarded_memory(fused_pass.measure_blocks, os.environ["GUARDED"])
            patch.setattr(fused_pass, "measure_blocks", measure)
        yield


def _once_more(tests: str, **environment: str) -> None:
    """Run tests of this file in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", __file__, "-k", tests]
    # A root of its own: two runs that clear the common one at once get in each other's way.
    with tempfile.TemporaryDirectory() as own:
        command.append(f"--basetemp={own}/tmp")
        run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]


@st.composite
def problems(draw):
    """q, k, a spec and keyword arguments that the fused pass covers."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    randn = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 9))
    heads, d = kv_heads * group, draw(st.sampled_from([4, 7, 33, 64, 128, 130, 256]))
    n_q = draw(st.one_of(st.integers(1, 40), st.integers(41, 300)))
    offset = draw(st.sampled_from([0, 0, 1, 63, 200]))
    n_k = n_q + offset
    q, k, v = randn(n_q, heads, d), randn(n_k, kv_heads, d), randn(n_k, kv_heads, d)
    # The largest |q||k| times scale bounds every score: above 64 some are summed in float64.
    bound = draw(st.sampled_from([0.5, 10.0, 31.0, 63.0, 90.0, 300.0]))
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
    return Problem((q, k, spec, kwargs))


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


def check(ds, want, largest, causal=True):
    """Every variable within 1e-5 · max(1, max|s|/50), relative where it is larger than 1.

    Where distances of both signs cancel, their mean is as exact as half the longest of them.
    """
    tolerance = 1e-5 * max(1.0, largest / 50)
    for name, reference in want.items():
        cancels = name == "mean_distance" and not causal
        size = max(1.0, abs(ds.distance.values).max() / 2) if cancels else 1.0
        np.testing.assert_allclose(ds[name], reference, rtol=tolerance, atol=tolerance * size, err_msg=name)


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
    check(ds, want, largest, spec.causal)


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


@pytest.mark.parametrize("bound", [60.0, 300.0, 3000.0])
@pytest.mark.parametrize("d", [64, 256])
def test_scores_that_cancel(bound, d):
    """Two dimensions hold nearly all of both norms and cancel in the score: the worst case of a float32 sum."""
    torch.manual_seed(0)
    q, k = torch.randn(400, 1, d), torch.randn(400, 1, d)
    q[..., [0, -1]] += 30
    k[..., 0] += 30
    k[..., -1] -= 30
    spec = AttentionSpec(scale=bound / float(q.norm(dim=-1).max() * k.norm(dim=-1).max()))
    kwargs = {"v": k, "query_start": 0, "map_size": 64}
    ds = attention_statistics(q, k, spec, backend="fused", **kwargs)
    want, largest, _ = dense(q, k, spec, **kwargs)
    tolerance = 1e-5 * max(1.0, largest / 50)
    for name in set(want) - {"score_std"}:
        np.testing.assert_allclose(ds[name], want[name], rtol=tolerance, atol=tolerance, err_msg=name)


def _odd_layouts():
    """The same values in memory that is transposed, strided, expanded from one head, or half as precise."""
    torch.manual_seed(3)
    x = torch.randn(130, 2, 33).bfloat16().float()
    yield "transposed", x, x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield "strided", x, torch.stack([x, torch.full_like(x, torch.nan)], dim=-1).flatten(2)[..., ::2]
    yield "expanded", x[:, :1].repeat(1, 2, 1), x[:, :1].expand(-1, 2, -1)
    yield "one row", x[:1].repeat(130, 1, 1), x[:1].expand(130, -1, -1)
    yield "bfloat16", x, x.bfloat16()
    yield "float16", x.half().float(), x.half()


@pytest.mark.parametrize(("plain", "odd"), [pytest.param(p, o, id=name) for name, p, o in _odd_layouts()])
def test_how_tensors_lie_in_memory_does_not_matter(plain, odd):
    spec = AttentionSpec(scale=0.1, window=50)
    one, other = (attention_statistics(x, x, spec, v=x, backend="fused") for x in (plain, odd))
    assert one.identical(other)


def test_a_failure_in_one_thread_ends_the_others():
    torch.set_num_threads(3)
    q, k = torch.randn(2000, 1, 8), torch.randn(2000, 1, 8)

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attention_statistics(q, k, AttentionSpec(scale=1.0), backend="fused", progress=fail)


def test_vexp2_and_vtanh():
    @njit
    def run(x, power, tanh):
        for i in range(0, x.size, LANES):
            vstore(power, i, vexp2(vload(x, i)))
            vstore(tanh, i, vtanh(vload(x, i)))

    x = np.concatenate([-np.geomspace(1e-9, 124.9, 16 * 5000), np.linspace(0, 1, 16 * 50)]).astype(np.float32)
    x[0] = 0.0
    power, tanh = np.empty_like(x), np.empty_like(x)
    run(x, power, tanh)
    assert power[0] == 1 and tanh[0] == 0
    np.testing.assert_allclose(power, np.exp2(x.astype(np.float64)), rtol=2e-7)
    np.testing.assert_allclose(tanh, np.tanh(x.astype(np.float64)), rtol=5e-7)


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
    with pytest.raises(InputError, match="give one of 'auto', 'portable', 'fused'"):
        attention_statistics(q, k, spec, backend="gpu")


@pytest.mark.slow
@pytest.mark.skipif("GUARDED" in os.environ, reason="this is that run")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect")
@pytest.mark.parametrize("side", ["start", "end"])
def test_nothing_outside_its_buffers(side):
    _once_more("dense_float64 or tile or cancel or nothing_to_see", GUARDED=side)


@pytest.mark.slow
@pytest.mark.skipif("NUMBA_CPU_NAME" in os.environ, reason="this is that run")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86 processors")
@pytest.mark.parametrize("processor", ["haswell", "generic"])
def test_processors_without_avx512(processor):
    """AVX2 and fma, and neither: the 4 × 16 tile, in vectors that LLVM cuts to size."""
    features = {"haswell": "+avx2,+fma,-avx512f", "generic": ""}[processor]
    _once_more(
        "dense_float64 or tile or cancel or bits or vexp2 or small_tile",
        NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES=features,
    )  # fmt: skip


@pytest.mark.skipif("NUMBA_CPU_NAME" not in os.environ, reason="run by test_processors_without_avx512")
def test_small_tile():
    assert ROWS == 4
    assert not compiled.has_feature("avx512f")


def test_a_call_of_the_same_shape_works_in_the_same_arrays(monkeypatch):
    workspace = Workspace(2**24)
    monkeypatch.setattr(fused_pass, "_WORKSPACE", workspace)
    torch.set_num_threads(2)
    q, k, spec = torch.randn(300, 2, 16), torch.randn(300, 1, 16), AttentionSpec(scale=0.25)
    first = attention_statistics(q, k, spec, backend="fused")
    before = {id(array): array for array in workspace.kept}
    attention_statistics(10 * q, 10 * k, spec, backend="fused")
    assert before.keys() == {id(array) for array in workspace.kept} and before
    for array in workspace.kept:
        array.fill(7)
    assert first.identical(attention_statistics(q, k, spec, backend="fused"))


def test_a_workspace_lends_each_array_once_and_keeps_no_more_than_its_limit():
    workspace = Workspace(100)
    with workspace.lend() as allocate, workspace.lend() as other:
        a, b, c = allocate(5), other(5), allocate(5, np.float32)
        assert len({id(x) for x in (a, b, c)}) == 3 and (b.dtype, c.dtype) == (np.float64, np.float32)
    assert sum(x.nbytes for x in workspace.kept) == 100
    with workspace.lend() as allocate:
        again = allocate((5,))
        assert again is a or again is b
        allocate(20)
    assert sum(x.nbytes for x in workspace.kept) <= 100


@pytest.mark.parametrize("bound", [0.5, 10.0, 31.0])
def test_mean_distance_where_keys_on_both_sides_cancel(bound):
    """Without a causal mask distances of both signs cancel, and the digits of their sums must not go with them."""
    torch.manual_seed(5)
    q, k = torch.randn(265, 1, 4), torch.randn(265, 1, 4)
    spec = AttentionSpec(scale=bound / float(q.norm(dim=-1).max() * k.norm(dim=-1).max()), causal=False)
    kwargs = {"v": k, "query_start": 0, "map_size": 1}
    want, largest, _ = dense(q, k, spec, **kwargs)
    ds = attention_statistics(q, k, spec, groups=("rows", "distances"), backend="fused")
    check(ds, {"mean_distance": want["mean_distance"]}, largest, causal=False)


@pytest.mark.slow
@pytest.mark.parametrize("model_id", ["gemma3-270m", "smollm2-135m"])
def test_real_queries_and_keys(model_id):
    """Layer 0 and a layer that sees everything, 1,024 tokens, against dense float64."""
    model = HookedTransformer.from_pretrained(model_id)
    tokens = torch.randint(1000, 20000, (1024,), generator=torch.Generator().manual_seed(0))
    full = next(layer for layer in range(1, model.cfg.n_layers) if model.cfg.window(layer) is None)
    cap = capture(model, tokens, layers=(0, full))
    for layer in (0, full):
        q, k, v, spec = cap.q(layer), cap.k(layer), cap.v(layer), cap.spec(layer)
        kwargs = {"v": v, "query_start": 0, "map_size": 64}
        ds = attention_statistics(q, k, spec, backend="fused", **kwargs)
        want, largest, pairs = dense(q, k, spec, **kwargs)
        assert (ds.score_count.sum("score_bin") == pairs).all()
        ds["score_std"] = (ds.score_m2 / np.maximum(ds["count"], 1)) ** 0.5
        check(ds, want, largest)


def test_nothing_to_see():
    q, k = torch.randn(5, 2, 8), torch.randn(5, 1, 8)
    spec = AttentionSpec(scale=1.0)
    ds = attention_statistics(q, k, spec, v=k, key_mask=torch.zeros(5), backend="fused")
    assert np.isnan(ds.entropy).all() and (ds.argmax_key == -1).all()
    assert ds["count"].sum() == 0 and ds.score_count.sum() == 0


def test_the_stamp_covers_every_module_that_is_compiled():
    folder = Path(compiled.__file__).parent
    for name in compiled.SOURCES:
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "interp":
                assert node.module is not None
                package = node.module == "interp.measure.fused"
                names = [a.name for a in node.names] if package else [node.module.removeprefix("interp.measure.fused.")]
                assert set(names) <= set(compiled.SOURCES), f"{name} takes from {names}"


@pytest.mark.parametrize("name", compiled.SOURCES)
def test_the_stamp_follows_every_source(name, tmp_path):
    for other in compiled.SOURCES:
        shutil.copy(Path(compiled.__file__).with_name(f"{other}.py"), tmp_path)
    before = compiled.sources_stamp(tmp_path)
    assert before == compiled.sources_stamp()
    with (tmp_path / f"{name}.py").open("a") as file:
        file.write("# edited")
    assert compiled.sources_stamp(tmp_path) != before


def test_stale_machine_code_is_not_loaded(tmp_path):
    """A function in a module of its own, whose cache outlives the process and must not outlive an edit elsewhere."""
    (tmp_path / "answer.py").write_text(
        "from interp.measure.fused.compiled import entry\n@entry\ndef run():\n    return 1\n"
    )
    code = (
        "import sys\nfrom interp.measure.fused import compiled\n"
        "if sys.argv[1:]: compiled.sources_stamp = lambda: 'edited'\n"
        "import answer\nanswer.run()\nprint(sum(answer.run.stats.cache_hits.values()))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", code, *extra], env=env, capture_output=True, text=True, check=True)
        for extra in ([], [], ["edited"])
    ]
    assert [run.stdout.strip() for run in runs] == ["0", "1", "0"]


def test_the_portable_pass_never_imports_numba():
    code = (
        "import sys\nimport torch\nfrom hooks import AttentionSpec\n"
        "from interp import attention_statistics\n"
        "x = torch.randn(5, 1, 4)\nattention_statistics(x, x, AttentionSpec(scale=1.0), backend='portable')\n"
        "print('numba' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
