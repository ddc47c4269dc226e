import dataclasses
from functools import partial

import pytest
import torch
from dense import dense_pattern, dense_scores, dense_z, visible
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

import hooks.functional.attend
from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError, MaterializationError
from hooks.functional.attend import attend_full, attend_fused, attend_rows
from hooks.functional.visible import row_blocks, visible_keys

WAYS = {
    "fused": attend_fused,
    "rows": attend_rows,
    "rows of a small block": partial(attend_rows, memory_budget=30_000),
    "full": attend_full,
}


@dataclasses.dataclass
class Case:
    """Arguments of one attention, random but determined by its fields."""

    batch: int = 1
    n_queries: int = 13
    kv_heads: int = 2
    group: int = 2
    d_head: int = 8
    query_start: int = 0
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    alibi: bool = False
    padding: int = 0
    gap: int = 0
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def tensors(self):
        g = torch.Generator().manual_seed(self.seed)
        n_keys = self.n_queries + self.query_start
        q = torch.randn(self.batch, self.n_queries, self.kv_heads * self.group, self.d_head, generator=g)
        k = torch.randn(self.batch, n_keys, self.kv_heads, self.d_head, generator=g)
        v = torch.randn(self.batch, n_keys, self.kv_heads, self.d_head, generator=g)
        return tuple(x.to(self.dtype) for x in (3 * q, k, v))

    def spec(self):
        heads = self.kv_heads * self.group
        return AttentionSpec(
            scale=self.d_head**-0.5,
            causal=self.causal,
            window=self.window,
            softcap=self.softcap,
            sinks=torch.linspace(-2, 3, heads, dtype=self.dtype) if self.sinks else None,
            alibi_slopes=tuple(0.5 / (h + 1) for h in range(heads)) if self.alibi else None,
        )

    def place(self):
        """query_start, left padding (row b of the batch has b tokens less of it) and position ids to match."""
        n_keys = self.n_queries + self.query_start
        pad = torch.tensor([max(self.padding - b, 0) for b in range(self.batch)])[:, None]
        index = torch.arange(n_keys)
        positions = (index - pad).clamp(min=0) + self.gap * (index // 3)
        return {
            "query_start": self.query_start,
            "key_mask": index >= pad if self.padding else None,
            "query_positions": positions[:, self.query_start :],
            "key_positions": positions,
        }


def dense_of(q, k, v, spec, query_start=0, key_mask=None, query_positions=None, key_positions=None):
    """(scores, pattern, z) of a batch in float64, with the batch axis first."""
    out = []
    for b in range(q.shape[0]):
        of = {
            "key_mask": None if key_mask is None else key_mask[b],
            "query_positions": None if query_positions is None else query_positions[b],
            "key_positions": None if key_positions is None else key_positions[b],
        }
        rules = {"causal": spec.causal, "window": spec.window, "softcap": spec.softcap}
        scores = dense_scores(
            q[b], k[b], spec.scale, alibi_slopes=spec.alibi_slopes, query_start=query_start, **rules, **of
        )
        pattern = dense_pattern(scores, spec.sinks)
        out.append((scores, pattern, dense_z(pattern, v[b])))
    return tuple(torch.stack(part) for part in zip(*out, strict=True))


def assert_close(got, expected, tolerance=1e-5):
    """Equal to `tolerance` times the largest value, NaN nowhere."""
    assert got.shape == expected.shape
    got, expected = got.detach().double(), expected.detach().double()
    assert (got - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


cases = st.builds(
    Case,
    batch=st.integers(1, 3),
    n_queries=st.one_of(st.just(1), st.integers(1, 40), st.sampled_from([65, 131, 257, 300])),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    d_head=st.sampled_from([4, 7, 16, 64, 80, 256]),
    query_start=st.sampled_from([0, 0, 1, 5, 64, 129]),
    causal=st.sampled_from([True, True, True, False]),
    window=st.sampled_from([None, 1, 2, 5, 33, 128, 1000]),
    softcap=st.sampled_from([None, None, 2.0, 30.0]),
    sinks=st.sampled_from([False, False, True]),
    alibi=st.sampled_from([False, False, True]),
    padding=st.sampled_from([0, 0, 1, 4, 50]),
    gap=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)


@settings(max_examples=60, deadline=None)
@given(case=cases)
@example(case=Case(n_queries=1))
@example(case=Case(n_queries=1, sinks=True, window=1))
@example(case=Case(n_queries=300, window=33, group=4, kv_heads=1, d_head=256))
@example(case=Case(n_queries=700, query_start=129, group=9, kv_heads=1, d_head=64))
@example(case=Case(batch=2, n_queries=9, padding=20))
@example(case=Case(batch=2, n_queries=300, padding=40, window=50))
@example(case=Case(batch=3, n_queries=70, padding=4, alibi=True, softcap=30.0, sinks=True, window=20, causal=False))
def test_all_ways_equal_dense_float64(case):
    tensors, spec, place = case.tensors(), case.spec(), case.place()
    expected = dense_of(*tensors, spec, **place)[2]
    for attend in WAYS.values():
        z = attend(*tensors, spec, **place)
        assert z.dtype == case.dtype
        assert_close(z, expected, 1e-5 if case.dtype == torch.float32 else 1e-12)


@settings(max_examples=40, deadline=None)
@given(case=cases, cuts=st.lists(st.integers(1, 299), max_size=6), shared=st.booleans())
@example(case=Case(n_queries=300, window=33, group=4, kv_heads=1), cuts=[100, 101, 299], shared=True)
@example(case=Case(batch=2, n_queries=300, sinks=True, softcap=2.0, alibi=True), cuts=[7, 200], shared=False)
@example(case=Case(batch=2, n_queries=140, causal=False), cuts=[1, 139], shared=False)
def test_packed_documents_equal_each_alone_in_dense_float64(case, cuts, shared):
    case = dataclasses.replace(case, query_start=0, padding=0, gap=0)
    (q, k, v), spec, n = case.tensors(), case.spec(), case.n_queries
    rows = [sorted({0, *(cut for cut in cuts[: None if shared else b + 1] if cut < n)}) for b in range(case.batch)]
    widest = max(map(len, rows))
    documents = torch.tensor([row + [n] * (widest - len(row)) for row in rows])
    expected = torch.empty(q.shape, dtype=torch.float64)
    for b, row in enumerate(rows):
        for start, stop in zip(row, [*row[1:], n], strict=True):
            part = slice(start, stop)
            expected[b, part] = dense_of(*(x[b : b + 1, part] for x in (q, k, v)), spec)[2][0]
    for attend in WAYS.values():
        z = attend(q, k, v, spec, documents=documents[0] if shared else documents)
        assert_close(z, expected, 1e-5 if case.dtype == torch.float32 else 1e-12)


@settings(max_examples=15, deadline=None)
@given(case=cases, cut=st.integers(1, 299))
def test_chunked_equals_one_shot(case, cut):
    case = dataclasses.replace(case, query_start=0, dtype=torch.float32)
    (q, k, v), spec, place = case.tensors(), case.spec(), case.place()
    cut = min(cut, case.n_queries)
    seen = cut if case.causal else case.n_queries
    for attend in WAYS.values():
        whole = attend(q, k, v, spec, **place)
        parts = []
        for rows, keys in ((slice(0, cut), seen), (slice(cut, case.n_queries), case.n_queries)):
            if rows.start == rows.stop:
                continue
            at = {
                "query_start": rows.start,
                "key_mask": None if place["key_mask"] is None else place["key_mask"][:, :keys],
                "query_positions": place["query_positions"][:, rows],
                "key_positions": place["key_positions"][:, :keys],
            }
            parts.append(attend(q[:, rows], k[:, :keys], v[:, :keys], spec, **at))
        assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "case",
    [
        Case(n_queries=140, batch=2),
        Case(n_queries=140, window=9, batch=2),
        Case(n_queries=31, query_start=260, kv_heads=1, group=3),
        Case(n_queries=300, batch=2, padding=7, window=21),
        Case(n_queries=290, batch=2, padding=100),
        Case(n_queries=75, softcap=3.0, sinks=True, alibi=True, batch=2, padding=70),
        Case(n_queries=75, causal=False, window=4, softcap=2.0),
    ],
    ids=["dense", "sliding", "offset", "padded sliding", "padded", "everything", "both sides"],
)
def test_gradients_equal_dense_autograd(way, case):
    spec, place = case.spec(), case.place()
    tensors = [x.requires_grad_() for x in case.tensors()]
    if spec.sinks is not None:
        tensors.append(spec.sinks.requires_grad_())
    toward = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(9))
    expected = torch.autograd.grad((dense_of(*tensors[:3], spec, **place)[2] * toward).sum(), tensors)
    got = torch.autograd.grad((WAYS[way](*tensors[:3], spec, **place) * toward).sum(), tensors)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 2e-5)


@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_hooks_see_the_dense_scores_and_pattern(case):
    tensors, spec, place = case.tensors(), case.spec(), case.place()
    scores, pattern, _ = dense_of(*tensors, spec, **place)
    n_keys = scores.shape[-1]
    seen = {}

    def collect(name):
        def hook(block, query_positions, key_positions):
            rows, keys = query_positions.shape[-1], key_positions.shape[-1]
            assert block.shape == (case.batch, case.kv_heads * case.group, rows, keys)
            seen.setdefault(name, []).append((block, query_positions, key_positions))
            return block

        return hook

    attend_rows(*tensors, spec, **place, on_scores=collect("s"), on_pattern=collect("p"), memory_budget=50_000)
    height = seen["s"][0][0].shape[2]
    blocks = list(row_blocks(spec, case.n_queries, n_keys, height, case.query_start))
    for (rows, keys), (s, at, keys_at), (p, _, _) in zip(blocks, seen["s"], seen["p"], strict=True):
        assert torch.equal(torch.isinf(s), torch.isinf(scores[:, :, rows, keys]))
        assert_close(s.nan_to_num(neginf=0), scores[:, :, rows, keys].nan_to_num(neginf=0))
        assert_close(p, pattern[:, :, rows, keys])
        outside = torch.ones(n_keys, dtype=torch.bool)
        outside[keys] = False
        assert not torch.isfinite(scores[:, :, rows][..., outside]).any()
        assert torch.equal(at.expand(case.batch, -1), place["query_positions"][:, rows])
        assert torch.equal(keys_at.expand(case.batch, -1), place["key_positions"][:, keys])
        assert at.ndim == (1 if (place["query_positions"] == place["query_positions"][:1]).all() else 2)
    assert blocks[-1].rows.stop == case.n_queries

    full = {}
    attend_full(
        *tensors,
        spec,
        **place,
        on_scores=lambda s: full.setdefault("scores", s),
        on_pattern=lambda p: full.setdefault("pattern", p),
    )
    assert torch.equal(torch.isinf(full["scores"]), torch.isinf(scores))
    assert_close(full["pattern"], pattern)
    assert full["scores"].shape == scores.shape


def raise_first_keys(block, query_positions, key_positions):
    """Add 2 to the scores of keys at positions below 4, in place."""
    block[..., key_positions < 4] += 2
    return block


def keep_top_two(block, query_positions, key_positions):
    """The two largest weights of each row, renormalised, as a new tensor."""
    top = block.topk(min(2, block.shape[-1]), dim=-1)
    kept = torch.zeros_like(block).scatter(-1, top.indices, top.values)
    return kept / kept.sum(-1, keepdim=True).clamp_min(1e-30)


@pytest.mark.parametrize(
    "case",
    [
        Case(n_queries=150, batch=2),
        Case(n_queries=150, window=6, kv_heads=3, group=3),
        Case(n_queries=50, query_start=20, sinks=True, softcap=4.0),
    ],
    ids=["dense", "sliding", "offset"],
)
@pytest.mark.parametrize("budget", [1, 40_000, hooks.functional.attend.MEMORY_BUDGET])
def test_an_edit_of_rows_equals_the_edit_of_the_whole_and_its_gradient(case, budget):
    spec = case.spec()
    at = (
        torch.arange(case.query_start, case.query_start + case.n_queries),
        torch.arange(case.n_queries + case.query_start),
    )
    results = []
    for way in ("rows", "full", "dense"):
        q, k, v = (x.requires_grad_() for x in case.tensors())
        if way == "rows":
            z = attend_rows(
                q, k, v, spec, query_start=case.query_start, memory_budget=budget,
                on_scores=raise_first_keys, on_pattern=keep_top_two,
            )  # fmt: skip
        elif way == "full":
            z = attend_full(
                q, k, v, spec, query_start=case.query_start,
                on_scores=lambda s: raise_first_keys(s, *at), on_pattern=lambda p: keep_top_two(p, *at),
            )  # fmt: skip
        else:
            scores = dense_of(q, k, v, spec, case.query_start)[0]
            first = (at[1] < 4).double() * 2
            patterns = [keep_top_two(dense_pattern(s + first, spec.sinks), *at) for s in scores]
            z = torch.stack([dense_z(p, x) for p, x in zip(patterns, v, strict=True)])
        grads = torch.autograd.grad((z.double() * torch.linspace(-1, 1, z.shape[-1]).double()).sum(), (q, k, v))
        results.append((z, *grads))
    for got in results[:2]:
        for a, b in zip(got, results[2], strict=True):
            assert_close(a, b, 3e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_hooks_may_edit_in_place_and_keep_their_blocks(grad):
    case = Case(n_queries=200)
    q, k, v = case.tensors()
    q.requires_grad_(grad)
    kept, copies = [], []

    def keep(block, *_):
        block *= 0.5
        kept.append(block)
        copies.append(block.detach().clone())
        return block

    z = attend_rows(q, k, v, case.spec(), on_scores=keep, on_pattern=keep)
    if grad:
        z.sum().backward()
        assert q.grad is not None
        assert torch.isfinite(q.grad).all()
    storages = {b.untyped_storage().data_ptr() for b in kept}
    assert len(storages) == len(kept)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_masking_a_whole_row_in_a_hook_gives_zeros_and_zero_gradients():
    case = Case(n_queries=20)
    q, k, v = (x.requires_grad_() for x in case.tensors())
    for attend in (attend_rows, attend_full):
        z = attend(q, k, v, case.spec(), on_scores=lambda s, *_: s.fill_(-torch.inf))
        assert torch.equal(z, torch.zeros_like(z))
        for g in torch.autograd.grad(z.sum(), (q, k, v)):
            assert torch.equal(g, torch.zeros_like(g))


@pytest.mark.parametrize("window", [None, 100])
def test_rows_hold_a_block_within_the_budget_at_any_length(window):
    largest = {}
    for n in (500, 1000, 2000):
        case = Case(n_queries=n, kv_heads=1, group=2, d_head=4, window=window)
        shapes = []

        def note(block, *_, shapes=shapes):
            shapes.append(block.numel())
            return block

        attend_rows(*case.tensors(), case.spec(), on_scores=note, memory_budget=300_000)
        largest[n] = max(shapes)
        assert 3 * 4 * max(shapes) <= 300_000
    assert max(largest.values()) < 1.3 * min(largest.values())


def test_sliding_blocks_never_look_past_the_window():
    spec = AttentionSpec(1.0, window=10)
    for rows, keys in row_blocks(spec, 1000, 1000, 16):
        assert keys.stop - keys.start <= 10 + rows.stop - rows.start - 1


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_visible_keys_is_the_dense_mask(causal, window):
    spec = AttentionSpec(1.0, causal=causal, window=window)
    mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) > 0.3
    got = visible_keys(spec, torch.arange(3, 12), torch.arange(12), mask)
    for b in range(2):
        expected = visible(9, 12, causal=causal, window=window, query_start=3, key_mask=mask[b])
        assert torch.equal(got[b], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_low_precision_follows_eager_attention(dtype, softcap):
    case = Case(batch=2, n_queries=130, kv_heads=2, group=3, d_head=32, softcap=softcap, dtype=dtype)
    q, k, v = case.tensors()
    bias = torch.zeros(130, 130, dtype=dtype).masked_fill(~visible(130, 130), torch.finfo(dtype).min)
    module = torch.nn.Module().eval()
    module.num_key_value_groups = 3
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    expected, _ = eager_attention_forward(module, *heads_first, bias[None, None], scaling=32**-0.5, softcap=softcap)
    exact = dense_of(q, k, v, case.spec())[2]
    for attend in WAYS.values():
        z = attend(q, k, v, case.spec())
        assert z.dtype == dtype
        assert_close(z, expected, 2 * torch.finfo(dtype).eps)
        assert (z - exact).abs().max() < 1.5 * (expected - exact).abs().max()


def test_full_refuses_what_does_not_fit_and_names_the_way_round(monkeypatch):
    case = Case(n_queries=100, kv_heads=1, group=3)
    monkeypatch.setattr(hooks.functional.attend, "free_bytes", lambda device: 359_999)
    with pytest.raises(MaterializationError, match=r"360,000 bytes.*359,999.*hook_attn_scores_rows.*hook_pattern_rows"):
        attend_full(*case.tensors(), case.spec())
    monkeypatch.setattr(hooks.functional.attend, "free_bytes", lambda device: 360_000)
    attend_full(*case.tensors(), case.spec())
    q, k, v = case.tensors()
    with pytest.raises(MaterializationError, match="720,000"):
        attend_full(q.requires_grad_(), k, v, case.spec())


def test_specs_compare_by_value():
    spec = AttentionSpec(0.5, window=3, sinks=torch.tensor([1.0, 2.0]), alibi_slopes=(0.5, 0.25))
    same = dataclasses.replace(spec, sinks=torch.tensor([1.0, 2.0]))
    assert spec == same
    assert hash(spec) == hash(same)
    changes = {"scale": 0.4, "causal": False, "window": 4, "softcap": 1.0, "alibi_slopes": None, "sinks": None}
    for name, value in changes.items():
        assert spec != dataclasses.replace(spec, **{name: value})
    assert spec != dataclasses.replace(spec, sinks=torch.tensor([1.0, 2.5]))
    assert spec != "spec"


@pytest.mark.parametrize("attend", [attend_fused, attend_rows, attend_full])
def test_bad_shapes_and_bad_hooks_are_named(attend):
    q, k, v = Case(kv_heads=2, group=2).tensors()
    with pytest.raises(InputError, match="do not fit"):
        attend(q[..., :4], k, v, AttentionSpec(1.0))
    with pytest.raises(InputError, match="do not fit"):
        attend(q, k[:, :0], v[:, :0], AttentionSpec(1.0))
    with pytest.raises(InputError, match="3 heads cannot share 2"):
        attend(q[:, :, :3], k, v, AttentionSpec(1.0))
    with pytest.raises(InputError, match="sinks has 3 values for 4"):
        attend(q, k, v, AttentionSpec(1.0, sinks=torch.zeros(3)))
    if attend is not attend_fused:
        with pytest.raises(InputError, match="on_pattern returned None"):
            attend(q, k, v, AttentionSpec(1.0), on_pattern=lambda p, *_: None)


@pytest.mark.parametrize("window", [None, 3, 9, 10, 40])
@pytest.mark.parametrize("n_keys", [1, 2, 9, 10, 11])
@pytest.mark.parametrize("start", [0, 1, 8, 9, 10])
def test_a_single_query_sees_what_stands_before_it(start, n_keys, window):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, heads, 16) for n, heads in ((1, 4), (n_keys, 2), (n_keys, 2)))
    start = min(start, n_keys - 1)
    z = attend_fused(q, k, v, AttentionSpec(scale=0.3, window=window), query_start=start)
    for row in range(2):
        scores = dense_scores(q[row], k[row], 0.3, window=window, query_start=start)
        expected = dense_z(dense_pattern(scores), v[row])
        torch.testing.assert_close(z[row].double(), expected, rtol=1e-5, atol=1e-6)
