"""How many query rows a block has: as many as its buffers leave room for."""

import torch

from hooks.config.attention_spec import AttentionSpec
from interp.measure.visibility import Visibility

_MAX_HEIGHT = 128


def block_height(
    budget: int, buffers: int, visibility: Visibility, spec: AttentionSpec, dtype: torch.dtype, beside: int = 0
) -> int:
    """Query rows of a block of which `buffers` copies, with `beside` more numbers per row, fit into `budget` bytes."""
    cells = max(budget // (buffers * dtype.itemsize), 1)
    width = max(visibility.key.numel(), 1)
    if spec.window is not None and spec.window < width:
        band = (2 if spec.causal else 3) * spec.window
        height = max(min(cells // (band + beside), spec.window, _MAX_HEIGHT), 1)
        # Rows far apart see far more keys together than each for itself: sampled ones, say.
        while height > 1 and visibility.band_width(height) > band:
            height //= 2
        return height
    return max(min(cells // (width + beside), _MAX_HEIGHT), 1)
