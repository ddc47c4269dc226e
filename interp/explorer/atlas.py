"""Pictures of one capture: log-sum-exps, pooled maps, tiles, each made when first asked for and kept within a bound."""

from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooks.errors import StageError
from interp.analyses.patterns.head_rows import checked_head
from interp.explorer.asking import TILE, Picture, Variant, Window
from interp.explorer.cache import Cache, Work
from interp.explorer.pixels import Drawn, Pixels, coarser, part, pixels
from interp.explorer.variants import Side, side_of
from interp.measure.statistics import attention_statistics, value_norms
from interp.tensors.capture_data import CaptureData

MAP_SIDE = 1024  # pixels along a side of the pooled map of a head, at most
_MOST_BYTES = 512 * 2**20
_EXACT_LSE = 128.0  # a float32 log-sum-exp beyond this is too coarse for five digits of the pattern


class Atlas:
    """Every picture of a capture, and the pieces of work in progress."""

    def __init__(self, cap: CaptureData, most_bytes: int = _MOST_BYTES) -> None:
        self.cap, self.n = cap, len(cap.positions)
        self.cache, self.work = Cache(most_bytes), Work()

    def checked(self, picture: Picture) -> Picture:
        """The picture, whose layer and head are there.

        Raises:
            StageError: the layer was not captured, or no gradient for its effects.
            PositionError: the layer has no such head.
        """
        if picture.layer not in self.cap.layers:
            self.cap.stages(picture.layer)  # raises, and says which layers there are
        checked_head(picture.head, self.cap.cfg.n_heads)
        return picture

    @property
    def map_scale(self) -> int:
        """Cells a pixel of the pooled map; tiles this coarse or coarser come from it."""
        scale = 1
        while scale * MAP_SIDE < self.n:
            scale *= 2
        return scale

    def side(self, layer: int, head: int, variant: Variant | None) -> Side:
        """A head's q and k under a variant."""
        make = partial(side_of, self.cap, layer, head, variant)
        return self.cache.get(("side", layer, head, variant), make, lambda side: side.n_bytes)

    def lse(self, layer: int, head: int, variant: Variant | None) -> Float[Tensor, " query"]:
        """Log-sum-exp of each row: of the run from the statistics, of anything else by a pass of its own."""
        make = partial(self._lse, layer, head, variant)
        return self.cache.get(("lse", layer, head, variant), make, lambda x: x.numel() * 8)

    def weight(self, layer: int, head: int) -> Float[Tensor, " key"]:
        """‖v_j W_O‖ of each key; ‖v_j‖ where the output projection is not known.

        Raises:
            StageError: the capture holds no values.
        """
        return self.cache.get(("weight", layer, head), partial(self._weight, layer, head), lambda x: x.numel() * 4)

    def effect(self, layer: int, head: int) -> tuple[Tensor, Tensor]:
        """g_i = ∂m/∂z_i of each query and v_j of each key: ``p_ij (g_i · v_j)`` is what the pair did to the metric m.

        Raises:
            StageError: the capture holds no gradients, or no values.
        """
        size = lambda held: sum(x.numel() * x.element_size() for x in held)  # noqa: E731
        return self.cache.get(("effect", layer, head), partial(self._effect, layer, head), size)

    def drawn(self, picture: Picture) -> list[Drawn]:
        """The sides of a picture."""
        layer, head, variant = picture.layer, picture.head, picture.variant
        side = self.side(layer, head, variant)
        if picture.view == "score":
            return [Drawn(side, None)]
        weight = self.weight(layer, head) if picture.view == "value" else None
        effect = self.effect(layer, head) if picture.view == "attribution" else None
        found = [Drawn(side, self.lse(layer, head, variant), weight, effect)]
        if picture.view == "difference":
            found.append(Drawn(self.side(layer, head, None), self.lse(layer, head, None), sign=-1.0))
        return found

    def tile(self, picture: Picture, window: Window) -> Pixels:
        """The pixels of one tile: cut from the pooled map where that is fine enough, else from its cells."""
        if window.scale < self.map_scale:
            make = partial(pixels, self.drawn(self.checked(picture)), picture.view, window)
            return self.cache.get((picture, window), make, lambda found: found.n_bytes)
        whole = self.level(picture, window.scale)
        rows, columns = (slice(a // window.scale, -(-b // window.scale)) for a, b in (window.queries, window.keys))
        return part(whole, rows, columns)

    def level(self, picture: Picture, scale: int) -> Pixels:
        """The whole picture at the scale of the pooled map or coarser."""
        if scale == self.map_scale:
            make = partial(self._map, self.checked(picture))
            return self.cache.get((picture, "map"), make, lambda found: found.n_bytes)
        fine = partial(self.level, picture, scale // 2)
        return self.cache.get((picture, scale), lambda: coarser(fine(), picture.view), lambda found: found.n_bytes)

    def window(self, picture: Picture, window: Window) -> Pixels:
        """The pixels of a window, put together from the tiles that it touches, which are kept."""
        scale, step = window.scale, window.scale * TILE
        spans = [range(a // step, -(-b // step)) for a, b in (window.queries, window.keys)]
        rows = []
        for row in spans[0]:
            tiles = []
            for column in spans[1]:
                edges = [(at * step, min((at + 1) * step, self.n)) for at in (row, column)]
                tiles.append(self.tile(picture, Window(scale, edges[0], edges[1])))
            rows.append([torch.cat([getattr(x, name) for x in tiles], 1) for name in ("total", "peak", "count")])
        whole = Pixels(*(torch.cat([row[i] for row in rows], 0) for i in range(3)))
        starts = [span.start * TILE for span in spans]
        cut = [
            slice(a // scale - start, -(-b // scale) - start)
            for (a, b), start in zip((window.queries, window.keys), starts, strict=True)
        ]
        return part(whole, cut[0], cut[1])

    def _lse(self, layer: int, head: int, variant: Variant | None) -> Float[Tensor, " query"]:
        if variant is None:
            found = torch.from_numpy(self.cap.statistics([layer])["lse"].sel(layer=layer, head=head).values).double()
            if float(found.abs().max()) < _EXACT_LSE:
                return found
        rows = self.side(layer, head, variant).rows
        with self.work.piece(f"row sums of L{layer} H{head}") as report:
            if variant is not None:
                found = _row_sums(rows.q, rows.k, rows.spec, self.cap, report)
                if float(found.abs().max()) < _EXACT_LSE or rows.q.dtype == torch.float64:
                    return found
            return _row_sums(rows.q.double(), rows.k.double(), rows.spec, self.cap, report)

    def _weight(self, layer: int, head: int) -> Float[Tensor, " key"]:
        v, w_o = self.cap.v(layer), self.cap.constants(layer).w_o
        own = v[:, head // (self.cap.cfg.n_heads // v.shape[1])][:, None].cpu()
        mine = None if w_o is None else w_o[head : head + 1].cpu()
        return value_norms(own, mine, 1, torch.promote_types(own.dtype, torch.float32))[0].float()

    def _effect(self, layer: int, head: int) -> tuple[Tensor, Tensor]:
        g, v = self.cap.gradient(layer, "z")[:, head], self.cap.v(layer)
        own = v[:, head // (self.cap.cfg.n_heads // v.shape[1])]
        return g.float().cpu().contiguous(), own.float().cpu().contiguous()

    def _map(self, picture: Picture) -> Pixels:
        """The pooled map, by a pass over the whole head."""
        whole = Window(self.map_scale, (0, self.n), (0, self.n))
        drawn = self.drawn(picture)
        with self.work.piece(f"map of L{picture.layer} H{picture.head}") as report:
            return pixels(drawn, picture.view, whole, report)


def _row_sums(q: Tensor, k: Tensor, spec: Any, cap: CaptureData, report: Any) -> Float[Tensor, " query"]:
    """Log-sum-exp of each row of one head, by the pass that measures everything."""
    measured = attention_statistics(
        q[:, None],
        k[:, None],
        spec,
        groups=("rows",),
        progress=report,
        **cap.standing,
    )
    return torch.from_numpy(measured["lse"].values[0].astype(np.float64))


def rows_of(
    atlas: Atlas,
    heads: tuple[tuple[int, int], ...],
    picture: Picture,
    *,
    query: int | None = None,
    key: int | None = None,
) -> np.ndarray:
    """One row or one column of a picture, as the mean over several heads; NaN where no head sees the pair.

    Raises:
        StageError, PositionError: a head that is not there.
    """
    values = []
    for layer, head in heads:
        own = atlas.checked(Picture(layer, head, picture.view, picture.variant))
        window = Window(1, *(((0, atlas.n) if at is None else (at, at + 1)) for at in (query, key)))
        values.append(pixels(atlas.drawn(own), own.view, window).means().ravel())
    stacked = np.stack(values)
    seen = ~np.isnan(stacked)
    total = np.where(seen, stacked, 0).sum(0, dtype=np.float64)
    return np.divide(total, seen.sum(0), out=np.full(total.shape, np.nan), where=seen.any(0)).astype(np.float32)


def held_values(cap: CaptureData, layer: int) -> bool:
    """Whether the capture holds the values of a layer."""
    try:
        cap.v(layer, positions=0)
    except StageError:
        return False
    return True


def held_effects(cap: CaptureData, layer: int) -> bool:
    """Whether the capture holds what the effects of a layer's pairs are made of."""
    return cap.gradients is not None and layer in cap.gradients.layers and held_values(cap, layer)
