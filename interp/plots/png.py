"""Pooled attention maps as small PNG images: a few kilobytes a head, whatever the length of the text."""

import base64
import struct
import zlib
from functools import cache

import numpy as np
from jaxtyping import Float

from interp.plots import theme
from interp.plots.maps import MAP_DECADES as DECADES

_LEVELS = 255


def map_png(mean_attention: Float[np.ndarray, "map_query map_key"]) -> bytes:
    """A map as a PNG: white is 10⁻⁵ or less, dark is 1, logarithmic in between; cells without pairs are transparent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        darkness = 1 + np.log10(mean_attention) / DECADES
    shade = 1 + np.rint(np.clip(darkness, 0, 1) * (_LEVELS - 1))
    indices = np.where(np.isnan(mean_attention), 0, np.nan_to_num(shade)).astype(np.uint8)
    height, width = indices.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), indices], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", _palette()),
        (b"tRNS", b"\x00"),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def data_uri(png: bytes) -> str:
    """The image as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@cache
def _palette() -> bytes:
    """Colour 0 for cells without pairs, then the shades from light to dark."""
    shades = [theme.rgb(level / (_LEVELS - 1), theme.SHADE_SCALE) for level in range(_LEVELS)]
    return bytes([255, 255, 255]) + b"".join(bytes(shade) for shade in shades)


def _chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
