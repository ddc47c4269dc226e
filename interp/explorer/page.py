"""The page's files: modules as they are for the server, joined into one for the widget, which takes a single file."""

import re
from functools import cache
from importlib.resources import files

# Leaves first: each imports only those before it.
MODULES = (
    "wire.js",
    "dom.js",
    "numbers.js",
    "colours.js",
    "address.js",
    "tiles.js",
    "rulers.js",
    "map.js",
    "heads.js",
    "words.js",
    "charts.js",
    "asking.js",
    "copying.js",
    "parts.js",
    "moving.js",
    "app.js",
)
SERVED = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "server.js": "text/javascript; charset=utf-8",
    **dict.fromkeys(MODULES, "text/javascript; charset=utf-8"),
}
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class|let)\b)", re.MULTILINE)


@cache
def page_file(name: str) -> str:
    """A file of the page as it lies in this package."""
    return (files("interp.explorer") / "static" / name).read_text(encoding="utf-8")


@cache
def joined() -> str:
    """All modules and the widget's skin as one, without the imports and exports that tied them."""
    parts = [_EXPORT.sub("", _IMPORT.sub("", page_file(name))) for name in MODULES]
    return "\n".join([*parts, _IMPORT.sub("", page_file("widget.js"))])
