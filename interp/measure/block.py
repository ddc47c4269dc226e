"""A block of query rows × the keys they see: its scores, its pattern, and where its diagonals and distances lie.

A block holds all the keys of its rows, so its softmax is exact and nothing is rescaled later.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooks.functional.scores import finish_scores
from interp.measure.work import Pass


class Buffers:
    """Two padded blocks, for scores and pattern, and plain scratch, reused by every block of a pass.

    A block sits between paddings one row narrower than it is high, so that stepping a row and a column at once
    walks a diagonal: seen with that stride each distance is a column.
    """

    def __init__(self, work: Pass, group: int) -> None:
        height = min(work.height, max(work.visibility.row.numel(), 1))
        self.pad = height - 1
        self.shape = (group, height, work.visibility.band_width(height) + 2 * self.pad)
        size = group * height * self.shape[2]
        self.scores, self.pattern, self.scratch = (
            torch.empty(size, dtype=work.dtype, device=work.q.device) for _ in range(3)
        )

    def core(self, flat: Tensor, rows: int, keys: int) -> Tensor:
        """[group row key]: the block without its paddings."""
        group, height, width = self.shape
        return flat.as_strided((group, rows, keys), (height * width, width, 1), self.pad)

    def diagonals(self, flat: Tensor, rows: int, keys: int, padding: float) -> Tensor:
        """[group row diagonal]: column c holds key c + row − (rows − 1); outside the block it reads `padding`."""
        group, height, width = self.shape
        whole = flat.view(self.shape)
        whole[:, :rows, self.pad - (rows - 1) : self.pad] = padding
        whole[:, :rows, self.pad + keys : self.pad + keys + rows - 1] = padding
        start = self.pad - (rows - 1)
        return flat.as_strided((group, rows, keys + rows - 1), (height * width, width + 1, 1), start)

    def plain(self, *shape: int) -> Tensor:
        """A contiguous scratch tensor; the next call reuses its memory."""
        size = 1
        for n in shape:
            size *= n
        if size > self.scratch.numel():
            self.scratch = self.scratch.new_empty(size)
        return self.scratch[:size].view(shape)


class Block:
    """A run of query rows of the heads that share one kv head, with the keys they see.

    Attributes:
        heads: query heads of the block.
        rows: its rows among those of the pass.
        keys: the run of kept keys that at least one row sees.
        out: where its rows lie in the row totals.
        in_step: one more row and one more key keep the distance, so that diagonals are distances.
        scores: [group row key]; scores, and once there is a pattern room for whoever needs it.
        pattern: [group row key]; after `exponentiate` exp(s − top), after `normalise` the pattern.
        top: the row's largest score; total: Σ exp(s − top); lse: with a learned sink logit.
    """

    top: Float[Tensor, "group row"]
    total: Float[Tensor, "group row"]
    lse: Float[Tensor, "group row"]

    def __init__(self, work: Pass, buffers: Buffers, heads: slice, rows: slice, row_offset: int) -> None:
        see = work.visibility
        self.work, self.buffers, self.heads, self.rows = work, buffers, heads, rows
        self.keys = see.band(rows)
        self.shape = (heads.stop - heads.start, rows.stop - rows.start, self.keys.stop - self.keys.start)
        self.out = slice(row_offset + rows.start, row_offset + rows.stop)
        self.hidden = see.hidden(rows, self.keys)
        self.in_step = see.in_step(rows)
        self.scores = buffers.core(buffers.scores, *self.shape[1:])
        self.pattern = buffers.core(buffers.pattern, *self.shape[1:])

    def score(self, keys: Float[Tensor, "kept d_head"]) -> None:
        """Fill the block with the scores that enter softmax; hidden cells hold unmasked scores."""
        work, see, spec = self.work, self.work.visibility, self.work.spec
        q = work.q[see.row[self.rows], self.heads].to(keys.dtype) * spec.scale
        for head in range(self.shape[0]):
            if keys.dtype == work.dtype:
                torch.mm(q[:, head], keys[self.keys].T, out=self.scores[head])
            else:
                self.scores[head].copy_(q[:, head] @ keys[self.keys].T)
        slopes = None if spec.alibi_slopes is None else spec.alibi_slopes[self.heads]
        scaled = replace(spec, scale=1.0, alibi_slopes=slopes)
        finish_scores(self.scores, scaled, see.query_position[self.rows], see.key_position[self.keys])

    def fill(self, value: float) -> None:
        """Write `value` into the scores of the cells that are not visible."""
        for columns, hidden in self.hidden:
            self.scores[:, :, columns].masked_fill_(hidden, value)

    def exponentiate(self) -> None:
        """Weights exp(s − top) from masked scores, which become s − top; keeps the row's top, total and lse."""
        top = self.scores.amax(-1)
        self.top = top.double()
        torch.exp(self.scores.sub_(top[..., None]), out=self.pattern)
        self.total = self.pattern.sum(-1).double()
        self.lse = self.top + self.total.log()
        if self.work.spec.sinks is not None:
            self.lse = torch.logaddexp(self.lse, self.work.spec.sinks[self.heads].to(self.lse)[:, None])

    def normalise(self) -> None:
        """The pattern from the weights; a learned sink logit takes its share."""
        self.pattern.mul_((self.top - self.lse).exp().to(self.pattern.dtype)[..., None])

    def visible(self) -> Bool[Tensor, "row key"]:
        """The block's whole mask."""
        visible = torch.ones(self.shape[1:], dtype=torch.bool, device=self.work.q.device)
        for columns, hidden in self.hidden:
            visible[:, columns] = ~hidden
        return visible

    def diagonals(self, flat: Tensor, columns: slice, padding: float = 0.0) -> Tensor:
        """[group row diagonal] of a buffer, these diagonals; outside the block it reads `padding`."""
        return self.buffers.diagonals(flat, *self.shape[1:], padding=padding)[:, :, columns]

    def visible_diagonals(self) -> slice:
        """Diagonals of an in-step block that the mask rules show; the rest of the block is hidden."""
        see, rows = self.work.visibility.host, self.shape[1]
        # The diagonal of a row's key: one further left for each row below the first.
        shift = torch.arange(rows - 1, -1, -1, device="cpu") - self.keys.start
        low, high = (see.first[self.rows] + shift).min(), (see.stop[self.rows] + shift).max()
        return slice(int(low), int(high))

    def diagonal_count(self, columns: slice) -> Float[Tensor, " diagonal"]:
        """Cells of each diagonal of the block."""
        rows, keys = self.shape[1:]
        column = torch.arange(columns.start, columns.stop, device=self.work.q.device)
        count = torch.minimum(column + 1, rows + keys - 1 - column).clamp_max(min(rows, keys))
        return count.double()

    def last_distance(self) -> int:
        """Distance of the block's first diagonal; each next diagonal is one nearer."""
        see = self.work.visibility.host
        return int(see.query_position[self.rows.stop - 1] - see.key_position[self.keys.start])

    def distances_of(self, columns: slice) -> slice:
        """Where the distances of these diagonals lie in the totals, in ascending order."""
        far = self.last_distance() - columns.start - self.work.low
        return slice(far - (columns.stop - columns.start) + 1, far + 1)

    def clear_outside(self, diagonals: Tensor, columns: slice) -> None:
        """Zero the cells of a [group row diagonal] tensor that lie outside the block."""
        rows, keys = self.shape[1:]
        row = torch.arange(rows, device=diagonals.device)[:, None]
        column = torch.arange(columns.start, columns.stop, device=diagonals.device)
        left = slice(0, max(min(rows - 1, columns.stop) - columns.start, 0))
        right = slice(max(keys - columns.start, left.stop), columns.stop - columns.start)
        for part in (left, right):
            key = column[part] + row - (rows - 1)
            diagonals[:, :, part].masked_fill_((key < 0) | (key >= keys), 0.0)
