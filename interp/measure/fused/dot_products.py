"""Scores of a tile, q·k: the inner kernel of a matrix product, written so that loops find its result in the cache.

Keys are packed once per kv head into ``[panel][d_head][PANEL]``, a block's queries into ``[group][d_head][ROWS]``. The
inner kernel keeps ROWS × PANEL sums in registers and runs along d_head, so that one load of keys serves ROWS rows.
It starts new float32 sums every CHUNK products: a long sum rounds more.
"""

# pyright: reportCallIssue=false

import numpy as np
import torch
from jaxtyping import Float
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from interp.measure.fused.compiled import has_feature, inner
from interp.measure.fused.simd import LANES, VECTOR, WIDE, address, fma, splat

# 24 sums, 3 vectors of keys and a query fill 32 registers of 16; elsewhere a vector takes several registers.
ROWS, _VECTORS = (8, 3) if has_feature("avx512f") else (4, 1)
PANEL = _VECTORS * LANES
CHUNK = 64
# Largest |q||k| that float32 sums are for: even where two dimensions hold all of it and cancel, a score is off by less
# than 1e-5. Beyond it sums are float64, which takes 2.5 × as long; each ROWS × PANEL scores choose on their own.
LARGE_SCORE = np.float32(64)
_INDEX = ir.IntType(64)


def _multiply(vectors, kind, scalar):
    """The inner kernel for this many vectors of keys, with sums of this kind."""

    @intrinsic
    def multiply(typing_context, queries, query_at, keys, key_at, depth, out, out_at, stride, add):
        """Scores of ROWS × 16 · vectors: sums along `depth`, stored, or added to what is there."""

        def generate(context, builder, signature, args):
            depth, stride, add = args[4], args[7], args[8]
            query, key, target = (
                address(context, builder, signature.args[i], args[i], args[i + 1]) for i in (0, 2, 5)
            )  # fmt: skip
            totals = _sum_along_depth(builder, kind, vectors, query, key, depth)
            nothing, held = ir.Constant(VECTOR, [0.0] * LANES), builder.icmp_signed("!=", add, _INDEX(0))
            for r, row in enumerate(totals):
                for v, total in enumerate(row):
                    total = total if kind == VECTOR else builder.fptrunc(total, VECTOR)
                    at = builder.add(builder.mul(stride, _INDEX(r)), _INDEX(LANES * v))
                    place = builder.bitcast(builder.gep(target, [at]), VECTOR.as_pointer())
                    before = builder.select(held, builder.load(place, align=4), nothing)
                    builder.store(builder.fadd(total, before), place, align=4)
            return context.get_dummy_value()

        single, at = types.Array(types.float32, 1, "C"), types.intp
        signature = types.none(types.Array(scalar, 1, "C"), at, single, at, at, single, at, at, at)
        return signature, generate

    return multiply


def _sum_along_depth(builder, kind, vectors, query, key, depth):
    """The loop: [ROWS][vectors] sums of query[i · ROWS + row] · key[i · PANEL + column] over i < depth."""
    entry, loop, end = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("end")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_INDEX)
    sums = [[builder.phi(kind) for _ in range(vectors)] for _ in range(ROWS)]
    query = builder.gep(query, [builder.mul(step, _INDEX(ROWS))])
    key = builder.gep(key, [builder.mul(step, _INDEX(PANEL))])
    places = [builder.bitcast(builder.gep(key, [_INDEX(LANES * v)]), VECTOR.as_pointer()) for v in range(vectors)]
    columns = [builder.load(place, align=4) for place in places]
    columns = [x if kind == VECTOR else builder.fpext(x, kind) for x in columns]
    totals = []
    for r, row in enumerate(sums):
        x = splat(builder, builder.load(builder.gep(query, [_INDEX(r)])), kind)
        totals.append([fma(builder, x, column, total) for column, total in zip(columns, row, strict=True)])
    following = builder.add(step, _INDEX(1))
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, end)
    step.add_incoming(_INDEX(0), entry)
    step.add_incoming(following, loop)
    for row, new in zip(sums, totals, strict=True):
        for total, after in zip(row, new, strict=True):
            total.add_incoming(ir.Constant(kind, [0.0] * LANES), entry)
            total.add_incoming(after, loop)
    builder.position_at_end(end)
    return totals


_multiply_single = _multiply(_VECTORS, VECTOR, types.float32)
_multiply_double = _multiply(1, WIDE, types.float64)


def pack_keys(keys: Float[Tensor, "kept d_head"]) -> tuple[np.ndarray, np.ndarray]:
    """Keys as flat float32 panels, the last filled with zeros, and the largest norm in each panel."""
    panels = -(-len(keys) // PANEL)
    whole = torch.zeros(panels * PANEL, keys.shape[1])
    whole[: len(keys)] = keys
    norm = torch.linalg.vector_norm(whole, dim=1).view(panels, PANEL).amax(1)
    return whole.view(panels, PANEL, keys.shape[1]).transpose(1, 2).flatten().numpy(), norm.numpy()


@inner
def pack_queries(queries, start, rows, packed):
    """Rows start … start + rows − 1 of queries [row d_head] as [group][d_head][ROWS], the last group filled with 0."""
    d = queries.shape[1]
    for r in range(-(-rows // ROWS) * ROWS):
        at = r // ROWS * d * ROWS + r % ROWS
        for i in range(d):
            packed[at + i * ROWS] = queries[start + r, i] if r < rows else 0


@inner
def scores(queries, precise, query_norm, keys, key_norm, d, first, stop, panel, panels, out, at, stride):
    """Scores of a block's rows × some panels of keys; what no row of a group sees is left out.

    Args:
        queries: the block's queries, packed, float32.
        precise: the same in float64; empty where no product of norms is large.
        query_norm: largest norm of each group of rows.
        keys: packed keys of the kv head.
        key_norm: largest norm of each panel.
        d: d_head.
        first: first key that each group of rows sees, counted from the first panel's first.
        stop: one past the last.
        panel: the first panel.
        panels: how many.
        out: flat cells; key 0 of row r goes to ``at + r · stride``. Rows fill groups, keys panels.
        at: see `out`.
        stride: see `out`.
    """
    for j in range(panels):
        here, key = (panel + j) * d * PANEL, j * PANEL
        for chunk in range(0, d, CHUNK):
            depth = min(CHUNK, d - chunk)
            for group in range(first.size):
                if stop[group] <= key or first[group] >= key + PANEL:
                    continue
                target = at + group * ROWS * stride + j * PANEL
                # Written so that an overflow of the norms counts as large.
                if precise.size == 0 or query_norm[group] * key_norm[panel + j] <= LARGE_SCORE:
                    query, place = (group * d + chunk) * ROWS, here + chunk * PANEL
                    _multiply_single(queries, query, keys, place, depth, out, target, stride, chunk)
                elif chunk == 0:
                    for v in range(0, PANEL, LANES):
                        _multiply_double(precise, group * d * ROWS, keys, here + v, d, out, target + v, stride, 0)
