"""The mark by which the tool knows a file for its own: put in when it is written, looked for before it is replaced.

It stands in the content, where the format has a place that no reader shows. A name says nothing: anybody may use it.
"""

import struct
import zlib
from pathlib import Path

_HTML = b'<meta name="generator" content="ropescope">'
_SVG = b"<!-- generator: ropescope -->\n"
_PDF = b"\n% generator: ropescope\n"
_PNG = b"tEXtSoftware\0ropescope"
_JPEG = b"\xff\xfe\x00\x16generator: ropescope"  # a comment of 22 bytes, its length among them
_WEBP = b"rope\x14\x00\x00\x00generator: ropescope"  # a chunk of a kind that no reader knows, and so passes over
# The head of a report that was written before there was a mark: its own words, and nobody else's.
_EARLIER = (
    b'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
    b" \xc2\xb7 ropescope</title>\n<script>document.documentElement.dataset.theme = matchMedia(",
)
_LOOKED_AT = 4096


def marked(content: bytes, kind: str) -> bytes:
    """The content of a file with the mark in it.

    Args:
        content: a whole file.
        kind: its format: html, png, svg, pdf, jpg, jpeg or webp.
    """
    if kind == "html":
        return content if _HTML in content[:_LOOKED_AT] else content.replace(b"<head>", b"<head>" + _HTML, 1)
    if kind == "png":
        length, checksum = struct.pack(">I", len(_PNG) - 4), struct.pack(">I", zlib.crc32(_PNG))
        return content[:33] + length + _PNG + checksum + content[33:]  # after the signature and the header
    if kind in ("jpg", "jpeg"):
        after = 2 + (2 + int.from_bytes(content[4:6]) if content[2:4] == b"\xff\xe0" else 0)  # APP0 comes first
        return content[:after] + _JPEG + content[after:]
    if kind == "webp":
        size = int.from_bytes(content[4:8], "little") + len(_WEBP)
        return content[:4] + size.to_bytes(4, "little") + content[8:] + _WEBP
    return content.rstrip() + {"svg": b"\n" + _SVG, "pdf": _PDF}[kind]


def is_marked(path: Path) -> bool:
    """Whether a page or an image is one that the tool wrote; False for what cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
            file.seek(max(0, path.stat().st_size - len(_PDF) - len(_WEBP)))
            end = file.read()
    except OSError:
        return False
    head = start.partition(b"</head>")[0].partition(b"<body")[0]
    return (
        (_HTML in head and head.lstrip()[:1] == b"<")
        or (start.startswith(_EARLIER[0]) and _EARLIER[1] in start)
        or (start.startswith(b"\x89PNG") and start[37 : 37 + len(_PNG)] == _PNG)
        or (start.startswith(b"\xff\xd8") and _JPEG in start)
        or (start.startswith(b"RIFF") and end.endswith(_WEBP))
        or (start.startswith(b"%PDF") and end.endswith(_PDF))
        or end.endswith(b"</svg>\n" + _SVG)
    )
