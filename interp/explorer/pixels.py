"""Pixels of a window of the n × n pattern: mean and extreme over the cells that each covers, exact, block by block."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.functional.scores import finish_scores
from interp.explorer.asking import SIGNED, View, Window
from interp.explorer.variants import Side
from interp.measure.portable import LARGE_SCORE

# Cells of a block: its float32 numbers stay in a core's own cache.
_ROWS, _KEYS = 256, 2048


@dataclass(frozen=True)
class Drawn:
    """One side of a picture, with what turns its scores into what is drawn.

    Attributes:
        side: q, k and visibility of the head.
        lse: log-sum-exp of each row, None where scores are drawn.
        weight: what each key counts, [key]; None where every one counts 1.
        effect: gradient of the metric to z, [query], and the values, [key], whose product each cell counts.
        sign: −1 for the side that is taken off.
    """

    side: Side
    lse: Float[Tensor, " query"] | None
    weight: Float[Tensor, " key"] | None = None
    effect: tuple[Float[Tensor, "query d_value"], Float[Tensor, "key d_value"]] | None = None
    sign: float = 1.0


@dataclass
class Pixels:
    """Sums, extremes and counts of the visible cells of each pixel."""

    total: Float[Tensor, "row column"]
    peak: Float[Tensor, "row column"]
    count: Int[Tensor, "row column"]

    def means(self) -> np.ndarray:
        """Mean over visible cells, NaN where there is none."""
        return torch.where(self.count > 0, self.total / self.count, torch.nan).float().numpy()

    def peaks(self) -> np.ndarray:
        """Largest of the visible cells (of a signed view: the one farthest from 0), NaN where there is none."""
        return torch.where(self.count > 0, self.peak, torch.nan).float().numpy()

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return sum(x.numel() * x.element_size() for x in (self.total, self.peak, self.count))


@torch.no_grad()
def pixels(drawn: list[Drawn], view: View, window: Window, report: Callable[[int, int], None] | None = None) -> Pixels:
    """The pixels of a window.

    A pixel of scale c covers queries ``[c·y, c·y + c)`` and keys ``[c·x, c·x + c)``, the last of a text as many as
    there are. Products are float32, float64 where scores may be large; sums of a block are float32, of blocks float64.

    Args:
        drawn: the side that is drawn, and for a difference the one that is taken off.
        view: what is drawn; it decides what the extreme is.
        window: which cells; it begins at whole pixels.
        report: called with pixel rows done and in total.
    """
    scale, (top, bottom), (left, right) = window.scale, window.queries, window.keys
    shape = -(-(bottom - top) // scale), -(-(right - left) // scale)
    lowest = -torch.inf if view == "score" else 0.0
    found = Pixels(
        torch.zeros(shape, dtype=torch.float64),
        torch.full(shape, lowest, dtype=torch.float32),
        torch.zeros(shape, dtype=torch.int32),
    )
    height, width = (scale * max(most // scale, 1) for most in (_ROWS, _KEYS))
    see = drawn[0].side.rows.see
    for begin in range(top, bottom, height):
        rows = slice(begin, min(begin + height, bottom))
        low, high = max(int(see.first[rows].min()), left), min(int(see.stop[rows].max()), right)
        low = left + (low - left) // scale * scale
        for start in range(low, high, width):
            _add(found, drawn, view, rows, slice(start, min(start + width, right)), window)
        if report is not None:
            report((rows.stop - top) // scale, shape[0])
    return found


def coarser(fine: Pixels, view: View) -> Pixels:
    """The pixels of twice the scale, each made of the four (at the end of a text fewer) that it covers."""

    def pooled(x: Tensor, fill: float, how: Callable[[Tensor], Tensor]) -> Tensor:
        padded = torch.nn.functional.pad(x, (0, x.shape[1] % 2, 0, x.shape[0] % 2), value=fill)
        rows, columns = (size // 2 for size in padded.shape)
        return how(padded.view(rows, 2, columns, 2).permute(0, 2, 1, 3).reshape(rows, columns, 4))

    return Pixels(
        pooled(fine.total, 0, lambda x: x.sum(-1)),
        pooled(fine.peak, -torch.inf if view == "score" else 0, _farthest if view in SIGNED else _largest),
        pooled(fine.count, 0, lambda x: x.sum(-1)).int(),
    )


def part(whole: Pixels, rows: slice, columns: slice) -> Pixels:
    """Some of the pixels."""
    return Pixels(*(x[rows, columns].clone() for x in (whole.total, whole.peak, whole.count)))


def cells(drawn: Drawn, rows: slice, keys: slice) -> Float[Tensor, "row key"]:
    """What is drawn of a block of cells, before those that are hidden are taken out."""
    side, held = drawn.side, drawn.side.rows
    q_norm, k_norm = side.norms
    large = float(q_norm[rows].max() * k_norm[keys].max()) > LARGE_SCORE
    q, k, spec = held.q[rows], held.k[keys], held.spec
    if large:
        q, k = q.double(), k.double()
    plain = spec.softcap is None and spec.alibi_slopes is None
    if drawn.lse is not None and plain:
        values = torch.addmm(-drawn.lse[rows, None].to(q.dtype), q * spec.scale, k.T)
    else:
        products = (q @ k.T)[None]
        values = finish_scores(products, spec, held.see.query_position[rows], held.see.key_position[keys])[0]
        if drawn.lse is not None:
            values.sub_(drawn.lse[rows, None])
    if drawn.lse is None:
        return values.float()
    # The exponent is at most 0, but for rounding: rounded to float32 it is off by less than it has digits.
    values = values.float().exp_()
    if drawn.weight is not None:
        values.mul_(drawn.weight[keys])
    if drawn.effect is not None:
        g, v = drawn.effect
        values.mul_(g[rows] @ v[keys].T)
    return values


def visible(side: Side, rows: slice, keys: slice) -> Tensor | None:
    """True where a query of these rows sees a key; None where each sees all."""
    first, stop = side.rows.see.first[rows], side.rows.see.stop[rows]
    if int(first.max()) <= keys.start and int(stop.min()) >= keys.stop:
        return None
    key = torch.arange(keys.start, keys.stop)
    return (key >= first[:, None]) & (key < stop[:, None])


def _add(found: Pixels, drawn: list[Drawn], view: View, rows: slice, keys: slice, window: Window) -> None:
    """Add a block of cells to the pixels that it lies in, which are its own."""
    scale = window.scale
    values = cells(drawn[0], rows, keys)
    for other in drawn[1:]:
        values.add_(cells(other, rows, keys), alpha=other.sign)
    seen = visible(drawn[0].side, rows, keys)
    if seen is not None:
        values.masked_fill_(~seen, 0.0)
    at = tuple(
        slice((part.start - start) // scale, -(-(part.stop - start) // scale))
        for part, start in ((rows, window.queries[0]), (keys, window.keys[0]))
    )
    found.total[at] = _pooled(values, scale, lambda x, axis: x.sum(axis)).double()
    if view == "score" and seen is not None:
        values.masked_fill_(~seen, -torch.inf)
    if view in SIGNED:
        ends = [_pooled(x, scale, lambda x, axis: x.amax(axis)) for x in (values, values.neg())]
        found.peak[at] = torch.where(ends[0] >= ends[1], ends[0], -ends[1])
    else:
        fill = -torch.inf if view == "score" else 0.0
        found.peak[at] = _pooled(values, scale, lambda x, axis: x.amax(axis), fill)
    found.count[at] = _counted(drawn[0].side, rows, keys, scale)


def _pooled(
    values: Float[Tensor, "row key"], scale: int, how: Callable[[Tensor, int], Tensor], fill: float = 0.0
) -> Float[Tensor, "pixel_row pixel_column"]:
    """Each pixel's cells as one number: rows first, which are whole runs of memory."""
    if scale == 1:
        return values.clone()
    height, width = (-(-size // scale) * scale for size in values.shape)
    if (height, width) != tuple(values.shape):
        beside = (0, width - values.shape[1], 0, height - values.shape[0])
        values = torch.nn.functional.pad(values, beside, value=fill)
    by_row = how(values.view(height // scale, scale, width), 1)
    return how(by_row.view(height // scale, width // scale, scale), 2)


def _counted(side: Side, rows: slice, keys: slice, scale: int) -> Int[Tensor, "pixel_row pixel_column"]:
    """Visible cells of each pixel: how far each row's run of keys reaches into each pixel's."""
    see, height = side.rows.see, rows.stop - rows.start
    edges = torch.arange(keys.start, keys.stop + scale, scale).clamp_max(keys.stop)
    edges = edges[: -(-(keys.stop - keys.start) // scale) + 1]
    inside = torch.minimum(see.stop[rows, None], edges[1:]) - torch.maximum(see.first[rows, None], edges[:-1])
    inside.clamp_min_(0)
    padded = torch.nn.functional.pad(inside, (0, 0, 0, -height % scale))
    return padded.view(-1, scale, padded.shape[1]).sum(1)


def _largest(x: Tensor) -> Tensor:
    """The largest of the last axis."""
    return x.amax(-1)


def _farthest(x: Tensor) -> Tensor:
    """The one of the last axis that is farthest from 0."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))[..., 0]
