"""Drawn problems that print as shapes: a failing example shows in a few lines, and says how to draw it again."""

import dataclasses

import torch


class Problem(tuple):
    """A tuple whose tensors print as type and shape."""

    def __repr__(self):
        return f"Problem({', '.join(map(_short, self))})"


def _short(x):
    if isinstance(x, torch.Tensor):
        return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{name}: {_short(value)}" for name, value in x.items()) + "}"
    if dataclasses.is_dataclass(x):
        return _short({f.name: getattr(x, f.name) for f in dataclasses.fields(x)})
    return repr(x) if not isinstance(x, tuple) or len(x) < 4 else f"{len(x)} × {x[0]!r} …"
