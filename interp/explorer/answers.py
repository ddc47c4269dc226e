"""An answer as it travels: a few words in JSON and arrays, in one run of bytes that server and widget both send."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_TYPES = {"float32": "<f4", "float64": "<f8", "int32": "<i4"}


@dataclass(frozen=True)
class Answer:
    """What a question got.

    Attributes:
        arrays: by name; float32, float64 or int32.
        said: plain values beside them.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The length of the header, the header as JSON, padding to 8 bytes, then each array, padded alike."""
        parts, described, at = [], [], 0
        for name, array in self.arrays.items():
            raw = np.ascontiguousarray(array, dtype=_TYPES[array.dtype.name]).tobytes()
            described.append({"name": name, "type": array.dtype.name, "shape": array.shape, "at": at})
            parts.append(raw + bytes(-len(raw) % 8))
            at += len(parts[-1])
        header = json.dumps({"said": self.said, "arrays": described}, allow_nan=False).encode()
        header += b" " * (-(len(header) + 4) % 8)
        return b"".join([len(header).to_bytes(4, "little"), header, *parts])


def unpack(raw: bytes) -> Answer:
    """The answer that `Answer.pack` made these bytes of."""
    length = int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4 : 4 + length])
    arrays = {}
    for one in header["arrays"]:
        count = int(np.prod(one["shape"], dtype=np.int64))
        found = np.frombuffer(raw, _TYPES[one["type"]], count, 4 + length + one["at"])
        arrays[one["name"]] = found.reshape(one["shape"])
    return Answer(arrays, header["said"])
