"""attention_statistics: every statistic of every head from one pass over q and k, exact, in O(n) memory."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal, get_args

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooks import checks
from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError
from hooks.functional.float64 import float64_device
from interp.common.progress import counted
from interp.measure.arguments import (
    check_progress,
    check_tensors,
    checked_documents,
    checked_mask,
    checked_positions,
    checked_start,
)
from interp.measure.block_height import block_height
from interp.measure.dataset import Measured, build_dataset
from interp.measure.portable import BUFFERS, run_portable
from interp.measure.schema import GROUPS, SINK_SIZES
from interp.measure.subsampling import GroupErrors, sample_rows
from interp.measure.totals import Totals
from interp.measure.visibility import Visibility
from interp.measure.work import Pass

MEMORY_BUDGET = 32 * 2**20
DEVICE_BUDGET = 2**31  # of a CUDA device: blocks as high as they get at any length that has been asked for
_TILE_NUMBERS = 2048  # of a row in the fused pass: scores of a tile with its edges, sums and largest of its keys
Backend = Literal["auto", "portable", "fused"]


@torch.no_grad()
def attention_statistics(
    q: Float[Tensor, "query head d_head"],
    k: Float[Tensor, "key kv_head d_head"],
    spec: AttentionSpec,
    *,
    v: Float[Tensor, "key kv_head d_head"] | None = None,
    w_o: Float[Tensor, "head d_head d_model"] | None = None,
    groups: Iterable[str] = GROUPS,
    queries: int | Sequence[int] | Int[Tensor, " chosen"] | None = None,
    map_size: int = 128,
    query_start: int | None = None,
    key_mask: Bool[Tensor, " key"] | None = None,
    query_positions: Int[Tensor, " query"] | None = None,
    key_positions: Int[Tensor, " key"] | None = None,
    documents: Sequence[int] | Int[Tensor, " document"] | None = None,
    memory_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    backend: Backend = "auto",
) -> xr.Dataset:
    """Measure the attention of one sequence without ever holding an n × n matrix.

    With ``s_ij`` the score that enters softmax (scaled, soft-capped, with ALiBi) and ``p`` the pattern, every
    statistic is a sum, an extreme or a moment of s or p over visible pairs only. Masks go by index, distances by
    position. A query that sees nothing gets NaN (argmax_key −1) and counts nowhere. A learned sink logit takes part
    in the softmax, so p sums to less than 1 over the keys; it is in ``lse`` and is no key.

    A batch is a loop: ``xr.concat([attention_statistics(q[b], k[b], spec) for b in range(len(q))], "batch")``. The
    fused pass works in the buffers of the call before where shapes are the same; it keeps at most 64 MiB of them.

    Scores are computed in float32, or in float64 when q or k is. Sums over blocks are float64, for which a device
    without it (Metal) hands its tensors to the CPU. The error against
    dense float64 is at most ``1e-5 · max(1, max|s| / 50)``, relative where a value is larger than 1; of mean_distance
    relative to the distances that it averages, which cancel where keys lie on both sides. positional_r2, a ratio of
    variances, is off by 1e-4 at most, or by ``4 · 2⁻²⁴ · max|s| / σ`` where the float32 scores spread by so small a σ.

    Args:
        q: Queries as they enter the score.
        k: Keys, one per kv head; query head h uses kv head ``h // (head / kv_head)``.
        spec: How q and k become a pattern.
        v: Values; adds ``received_value`` and ``attention_value``.
        w_o: Output projection of each head, so that a value weighs ``‖v_j W_O‖``; without it ``‖v_j‖``.
        groups: Which families to compute, one name or several: "rows", "keys", "distances", "map", "scores".
        queries: None measures every query. A number measures that many, drawn evenly stratified with a fixed seed:
            sums, counts and score_m2 become unbiased estimates for all queries, many with a ``…_stderr``, and
            positional_r2 is adjusted for the noise of the means by distance. Indices measure just these queries.
        map_size: Side of the pooled map; at most the number of queries and keys.
        query_start: Index of the first query among the keys (chunked runs). It must be given where there are fewer
            queries than keys and masks go by index, because the last rows of a text are not its first ones.
        key_mask: True where a key is real; None when all are.
        query_positions: Positions of the queries; by default ``query_start + row``.
        key_positions: Positions of the keys; by default their indices.
        documents: Rows of k at which the documents begin that are packed into one row, ascending from 0; None is one
            document. Each is measured as it would be alone: rows and keys stand one behind the other, pairs of all
            documents count together.
        memory_budget: Bytes that the blocks at hand may take, over all threads; a block has at least one row. None is
            32 MiB, and 2 GiB of a CUDA device.
        progress: Called with rows done and rows in total, over all heads; by default a bar on a terminal, once it takes
            longer than a moment.
        backend: "fused" is compiled and multi-threaded, for float32 scores on the CPU and keys without holes;
            "portable" is torch and does everything. "auto" takes the first where it can. Both are within the error
            above; the Dataset's attribute ``backend`` names the one taken.

    Returns:
        Dataset over head, query, key, distance, map_query, map_key and score_bin; `interp.measure.schema.VARIABLES`
        lists the variables.

    Raises:
        InputError: Shapes that do not fit together, an argument out of range, NaN or infinity in q, k, v or w_o.
    """
    groups = frozenset(checks.choices("groups", groups, GROUPS))
    backend = checks.choice("backend", backend, get_args(Backend))
    map_size = checks.whole("map_size", map_size, at_least=1)
    check_progress(progress)
    check_tensors(q, k, v, w_o, spec)
    budget = _budget(memory_budget, q)
    start = checked_start(query_start, q, k, spec)
    device = float64_device(q.device)
    q, k, v = q.to(device), k.to(device), None if v is None else v.to(device)
    dtype = torch.float64 if torch.float64 in (q.dtype, k.dtype) else torch.float32
    query_positions = checked_positions("query_positions", query_positions, start, q.shape[0], q.device)
    key_positions = checked_positions("key_positions", key_positions, 0, k.shape[0], k.device)
    documents = checked_documents(documents, k.shape[0], k.device)
    see = Visibility.of(spec, query_positions, key_positions, start, checked_mask(key_mask, k), documents)
    apart = see.apart(documents)
    samples = sample_rows(queries, q.shape[0], q.device)
    chosen = [[own.select(rows) for _, own in apart] for rows in samples.rows]
    low, high = _distance_range(apart) if "distances" in groups else (0, 0)
    n_rows = sum(own.row.numel() for parts in chosen for own in parts)
    value_norm = None if v is None else value_norms(v[see.key], w_o, q.shape[1], dtype)
    map_shape = _map_shape(map_size, q.shape[0], k.shape[0])
    totals = Totals.empty(
        groups,
        heads=q.shape[1],
        rows=n_rows,
        sinks=len(SINK_SIZES),
        kept=see.key.numel(),
        distances=high - low + 1,
        map_shape=map_shape,
        values=value_norm is not None,
        dtype=dtype,
        device=q.device,
    )
    pass_over = partial(Pass, q=q, k=k, spec=spec, groups=groups, low=low, map_shape=map_shape, dtype=dtype)
    errors = GroupErrors()
    run = _choose(backend, q, dtype, in_step=all(own.keys_in_step for _, own in apart))
    buffers = torch.get_num_threads() if run is run_fused else BUFFERS * (q.shape[1] // k.shape[1])
    beside = _TILE_NUMBERS if run is run_fused else 0
    total, finished, offset, measured_rows = q.shape[1] * n_rows, 0, 0, 0

    def done(rows: int) -> None:
        nonlocal finished
        finished += rows
        report(finished, total)

    with counted("measuring attention") if progress is None else nullcontext(progress) as report:
        for parts, rows in zip(chosen, samples.rows, strict=True):
            before = totals.sums(measured_rows) if samples.estimate else {}
            for (keys, _), own in zip(apart, parts, strict=True):
                height = block_height(budget, buffers, own, spec, dtype, beside)
                norms = None if value_norm is None else value_norm[:, keys]
                of_keys = totals.of_keys(keys)
                run(pass_over(visibility=own, totals=of_keys, value_norm=norms, height=height), offset, done)
                offset += own.row.numel()
            measured_rows += rows.numel()
            if samples.estimate:
                errors.add(before, totals.sums(measured_rows))
    in_order = [own for parts in chosen for own in parts]
    measured = Measured(see, in_order, samples, errors, query_positions, key_positions, value_norm, low)
    values = None if v is None else "‖v_j‖" if w_o is None else "‖v_j W_O‖"
    return build_dataset(totals, measured, values).assign_attrs(backend=run.__name__.removeprefix("run_"))


def _budget(memory_budget: int | None, q: Tensor) -> int:
    """Bytes for the blocks at hand: as asked for, or what the device of q can spare."""
    if memory_budget is not None:
        return checks.whole("memory_budget", memory_budget, at_least=1)
    return DEVICE_BUDGET if q.is_cuda else MEMORY_BUDGET


def _map_shape(map_size: int, n_queries: int, n_keys: int) -> tuple[int, int]:
    """Rows and columns of the pooled map, no more than there are queries and keys."""
    if map_size < 1:
        raise InputError(
            f'map_size={map_size}: the pooled map has at least one cell; leave "map" out of groups for none'
        )
    return min(map_size, n_queries), min(map_size, n_keys)


def _distance_range(apart: list[tuple[slice, Visibility]]) -> tuple[int, int]:
    """Smallest and largest distance within any document."""
    lows, highs = zip(*(own.distance_range for _, own in apart), strict=True)
    return min(lows), max(highs)


def _choose(backend: Backend, q: Tensor, dtype: torch.dtype, *, in_step: bool) -> Callable[..., None]:
    """The function that runs a pass.

    Raises:
        InputError: the fused pass was asked for and cannot do it.
    """
    covered = q.device.type == "cpu" and dtype == torch.float32 and in_step
    if backend == "fused" and not covered:
        raise InputError(
            'backend="fused" measures float32 scores on the CPU for keys that follow each other without a gap; here '
            f"scores are {dtype} on {q.device}{'' if in_step else ', and keys have gaps'}. "
            'Choose "auto" or "portable".'
        )
    return run_fused if covered and backend != "portable" else run_portable


def run_fused(work: Pass, offset: int, done: Callable[[int], None]) -> None:
    """Run a pass compiled; numba is imported only now."""
    from interp.measure.fused.threads import FusedPass

    FusedPass(work).run(offset, done)


def value_norms(
    v: Float[Tensor, "kept kv_head d_head"], w_o: Tensor | None, heads: int, dtype: torch.dtype
) -> Float[Tensor, "head kept"]:
    """‖v_j W_O‖ of each query head through the triangular factor R of ``W_Oᵀ = Q R``, since Q keeps lengths.

    In float64: where W_O takes a value nearly to nothing, float32 leaves of its length what rounding left of it.
    """
    group, v = heads // v.shape[1], v.contiguous()
    if w_o is None:
        norms = torch.linalg.vector_norm(v, dim=-1, dtype=torch.float64).T.repeat_interleave(group, dim=0)
        return norms.to(dtype)
    factor = torch.linalg.qr(w_o.to(v.device, torch.float64).mT, mode="r").R
    norms = []
    for kv_head in range(v.shape[1]):
        own = v[:, kv_head].double()
        for head in range(kv_head * group, (kv_head + 1) * group):
            norms.append(torch.linalg.vector_norm(own @ factor[head].T, dim=-1))
    return torch.stack(norms).to(dtype)
