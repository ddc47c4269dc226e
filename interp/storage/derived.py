"""Stages that follow from a stored one: whether they do when it is recorded, and they themselves when it is read."""

import hashlib
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hooks.errors import CaptureDamagedError
from interp.storage.manifest import last_row
from interp.storage.tensor_files import REMEDY
from interp.tensors.derivation import Derivation
from interp.tensors.stages import steps_before

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ULPS = 8  # of the largest value in a row: what another order of summation, or another sine, may come to


def without_derived(
    tensors: Mapping[str, Tensor], steps: tuple[str, ...], derivation: Derivation
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A layer's tensors without the stages that follow from the others to the last bit.

    Args:
        tensors: q, k and v by name (q.pre_norm, …, v).
        steps: clip, norm and rope in the order of the layer.
        derivation: takes these steps.

    Returns:
        What is to be stored, with the last row of each stage that is not, and the SHA-256 of each of those by name.
    """
    stored, derived = dict(tensors), {}
    for which in "qk":
        done = {name: steps_done(name, steps) for name in tensors if name.startswith(f"{which}.")}
        before = None
        for name in sorted(done, key=done.__getitem__):
            if before is not None and derivation.knows(which, done[before], done[name]):
                sha256 = _sha256_if_derived(derivation, which, tensors, before, name, done)
                if sha256 is not None:
                    derived[name] = sha256
                    stored[last_row(name)] = stored.pop(name)[-1:].clone()
            before = name
    return stored, derived


def steps_done(name: str, steps: tuple[str, ...]) -> int:
    """How many steps a tensor has behind it, by its name."""
    found = steps_before(name.partition(".")[2], steps)
    assert found is not None, "a layer's record names stages that it has"
    return found


def _sha256_if_derived(
    derivation: Derivation, which: str, tensors: Mapping[str, Tensor], before: str, name: str, done: Mapping[str, int]
) -> str | None:
    """SHA-256 of a stage, if it follows from the one before it to the last bit."""
    wanted, digest = tensors[name], hashlib.sha256()
    for place, rows in derivation.pieces(which, tensors[before], done[before], done[name]):
        if not _same_bits(rows, wanted[place]):
            return None
        digest.update(_bytes(rows))
    return digest.hexdigest()


def derive(
    out: Float[Tensor, "pos head d_head"],
    derivation: Derivation,
    which: str,
    base: Float[Tensor, "pos head d_head"],
    first: int,
    last: int,
) -> str:
    """Fill a tensor with a stage, derived from another, and return the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    for place, rows in derivation.pieces(which, base, first, last):
        out[place] = rows
        digest.update(_bytes(rows))
    return digest.hexdigest()


def check_close(where: str, found: Float[Tensor, "1 head d_head"], recorded: Float[Tensor, "1 head d_head"]) -> None:
    """Make sure that a derived stage with another hash differs in its last bits alone, by its last row.

    Raises:
        CaptureDamagedError: it differs in more.
    """
    wide, other = found.double(), recorded.double()
    within = _ULPS * torch.finfo(recorded.dtype).eps * float(other.abs().max())
    if not bool(((wide - other).abs() <= within).all()):
        raise CaptureDamagedError(
            f"{where} does not follow from what is stored of its layer as it did when it was recorded: a constant or a "
            f"setting was changed since; {REMEDY}"
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the last bit, NaN and the sign of 0 included."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    kind = _BITS[a.dtype.itemsize]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def _bytes(rows: Tensor) -> memoryview:
    """A tensor's bytes."""
    return rows.contiguous().view(-1).view(torch.uint8).numpy().data
