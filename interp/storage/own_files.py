"""Which files in a capture's directory the tool wrote: told by what is in them, never by their names alone.

Since format 2 every file carries a mark. Earlier ones are known by being to the byte what that version would have
written there: the header of a safetensors file in our own layout, for just the tensors that the capture has.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interp.common.files import TEMPORARY
from interp.storage import manifest as names
from interp.storage.lock import LOCK
from interp.storage.tensor_files import MARK, TensorInfo, header, read_header

SOURCE = "source.json"
_CONSTANT = re.compile(r"\d+\.(gain_[qk]|bias_[qk]|inv_freq|w_o|sinks)", re.ASCII)
_TEMPORARY = re.compile(r"\.ropescope-[a-z0-9_]{8}\.tmp", re.ASCII)
# How files of ours begin; a safetensors file after the 8 bytes of its header's length.
_TENSORS = (f'{{"__metadata__":{{"{MARK}":"'.encode(), b'{"__metadata__":{"note":"{\\"key\\": ')
_EARLIER_TENSORS = re.compile(rb'\{"(k\.\w+|residual|loss|positions|\d+\.\w+)":\{"dtype":"', re.ASCII)
_MANIFESTS = (f'{{\n "format": {n},\n "model_id": '.encode() for n in range(1, names.FORMAT + 1))
_JSON = (f'{{"{MARK}": "'.encode(), *_MANIFESTS)
_EARLIER_JSON = b'{"token 0": "'


def marked_json(kind: str, content: dict) -> bytes:
    """A small JSON file with the mark in it."""
    return json.dumps({MARK: kind, **content}).encode()


def has_json_mark(path: Path, kind: str) -> bool:
    """Whether a file is what `marked_json` made."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get(MARK) == kind


def is_begun(path: Path) -> bool:
    """Whether a temporary file is one that a killed run left: it begins as ours do.

    So does one that was cut before its mark, and one in which nothing stands yet, if its name is one that we draw.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_JSON) or start[8:].startswith(_TENSORS):
        return True
    cut = _EARLIER_TENSORS.match(start, 8) is not None and read_header(path) is None
    return (cut or not start or start.startswith(_EARLIER_JSON)) and bool(_TEMPORARY.fullmatch(path.name))


@dataclass(frozen=True)
class OwnFiles:
    """Tells of a file in a capture's directory whether the tool wrote it.

    Attributes:
        n_tokens: length of the capture's text.
        d_model: width of its model.
        earlier_source: what an earlier version would have written of where this model came from; empty for nothing.
    """

    n_tokens: int
    d_model: int
    earlier_source: bytes = b""

    def __call__(self, path: Path) -> bool:
        """Whether the tool wrote what is in a file; it need not be whole."""
        try:
            return self._question(path.name)(path)
        except OSError:
            return False

    def _question(self, name: str) -> Callable[[Path], bool]:
        """What to ask of a file of this name."""
        if Path(name).match(TEMPORARY):
            return lambda path: is_begun(path) or self._is_tensors(path) or self._is_source(path)
        asked = {
            LOCK: lambda path: path.stat().st_size == 0,  # opened and never written
            SOURCE: self._is_source,
            names.MANIFEST: names.is_manifest,
            names.TOKEN_STRINGS: self._is_token_strings,
        }
        return asked.get(name, self._is_tensors)

    def _is_source(self, path: Path) -> bool:
        """Whether a file says where the model came from."""
        if has_json_mark(path, "source"):
            return True
        size = path.stat().st_size
        return 0 < size <= len(self.earlier_source) and self.earlier_source.startswith(path.read_bytes())

    def _is_token_strings(self, path: Path) -> bool:
        """Whether a file has the texts of the tokens."""
        if has_json_mark(path, "tokens"):
            return True
        content = path.read_bytes()
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return False
        known = isinstance(found, dict) and list(found) == ["token 0", "str_tokens"] and json.dumps(found).encode()
        return known == content and len(found["str_tokens"]) == self.n_tokens

    def _is_tensors(self, path: Path) -> bool:
        """Whether a safetensors file is marked, or one of the capture's own from before there was a mark."""
        found = read_header(path)
        if found is None:
            return False
        text, infos, metadata = found
        return metadata.get(MARK) == "capture" or (text == header(infos, {}) and self._are_expected(infos))

    def _are_expected(self, infos: dict[str, TensorInfo]) -> bool:
        """Whether a file of this capture has just these tensors."""
        shapes, n = {name: info.shape for name, info in infos.items()}, self.n_tokens
        if {"q.final", "k.final", "v"} <= set(shapes):
            return all(len(shape) == 3 and shape[0] == n for shape in shapes.values())
        alone = ({"residual": (1, n, self.d_model)}, {"tokens": (n,), "positions": (n,)}, {"loss": (n - 1,)})
        return shapes in (*alone, {"loss": (0,)}) or (bool(shapes) and all(map(_CONSTANT.fullmatch, shapes)))
