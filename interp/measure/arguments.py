"""What attention_statistics is given, checked: tensors that fit together, finite; positions and masks in one form."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooks import checks
from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError
from interp.common.finite import check_finite

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(q: Any, k: Any, v: Any, w_o: Any, spec: Any) -> None:
    """Shapes that fit together, of a floating type that can be computed with, and nothing that is not finite."""
    if not isinstance(spec, AttentionSpec):
        raise InputError(f"spec={checks.shown(spec)}: give an AttentionSpec, such as model.cfg.attention_spec(layer)")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x is not None or name in "qk":
            _check_sequence(name, x)
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads % kv_heads or q.shape[2] != k.shape[2]:
        raise InputError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} do not fit: the last axes must agree and the heads of q be a "
            "multiple of those of k."
        )
    if len({x.device for x in (q, k, v) if x is not None}) > 1:
        raise InputError(
            f"q is on {q.device} and k on {k.device}{'' if v is None else f', v on {v.device}'}: move them"
        )
    if v is not None and v.shape[:2] != k.shape[:2]:
        raise InputError(f"v {tuple(v.shape)} must have the positions and heads of k {tuple(k.shape)}.")
    if w_o is not None:
        _check_projection(w_o, v, heads)
    for name, per_head in (("sinks", spec.sinks), ("alibi_slopes", spec.alibi_slopes)):
        if per_head is not None and len(per_head) != heads:
            raise InputError(f"spec.{name} has {len(per_head)} entries for {heads} heads.")
    if spec.sinks is not None and not bool((spec.sinks < torch.inf).all()):  # −inf is no sink
        raise InputError(f"spec.sinks holds NaN or infinity ({spec.sinks.tolist()}): a sink logit is a number")
    check_finite(q=q, k=k, v=v)
    check_finite(rows="head", w_o=None if w_o is None else w_o.flatten(1))


def check_progress(progress: Any) -> None:
    """A function, or None."""
    if progress is not None and not callable(progress):
        raise InputError(f"progress={checks.shown(progress)}: give a function of rows done and rows in total")


def _check_sequence(name: str, x: Any) -> None:
    """A tensor [position head d_head] that holds numbers."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name}={checks.shown(x)}: give a torch tensor [position head d_head]")
    if x.ndim != 3 or x.dtype not in _FLOATING or not x.numel():
        raise InputError(
            f"{name} must be floating point [position head d_head] and not empty; it is {x.dtype} "
            f"{tuple(x.shape)}. Leave out the batch axis: one call measures one sequence."
        )
    if x.is_meta:
        raise InputError(f"{name} is on the meta device and holds no numbers: load the model's weights first")


def _check_projection(w_o: Any, v: Tensor | None, heads: int) -> None:
    """An output projection of each head, for the values that are there."""
    wanted = None if v is None else (heads, v.shape[2])
    floating = isinstance(w_o, Tensor) and w_o.ndim == 3 and w_o.dtype in _FLOATING and w_o.numel() > 0
    if not floating or w_o.shape[:2] != wanted:
        given = tuple(w_o.shape) if isinstance(w_o, Tensor) else checks.shown(w_o)
        raise InputError(
            f"w_o {given} must be [head d_head d_model] for {heads} heads, and come with v, whose values it "
            f"projects{'' if v is None else f' (d_head {v.shape[2]})'}."
        )


def checked_start(query_start: int | None, q: Tensor, k: Tensor, spec: AttentionSpec) -> int:
    """Index of the first query among the keys: 0 where queries and keys are the same tokens, else as given."""
    if query_start is not None:
        return checks.whole("query_start", query_start, at_least=0, at_most=2**53)
    if len(q) != len(k) and (spec.causal or spec.window is not None):
        raise InputError(
            f"{len(q):,} queries and {len(k):,} keys: give query_start, the index of the first query among the keys "
            f"({len(k) - len(q):,} if they are the last ones, 0 if they are the first), because masks go by index"
        )
    return 0


def checked_mask(key_mask: Bool[Tensor, " key"] | None, k: Tensor) -> Bool[Tensor, " key"] | None:
    """The mask as booleans, of the length of k."""
    if key_mask is None:
        return None
    mask = _as_tensor("key_mask", key_mask)
    if mask.shape != k.shape[:1]:
        raise InputError(f"key_mask {tuple(mask.shape)} must be [key], here [{k.shape[0]}].")
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("key_mask holds other values than 0 and 1: it says which keys are real, nothing else")
    return mask.to(device=k.device, dtype=torch.bool)


def checked_positions(
    name: str, given: Int[Tensor, " n"] | None, start: int, n: int, device: torch.device
) -> Int[Tensor, " n"]:
    """Positions as given, or counted from `start`."""
    if given is None:
        return torch.arange(start, start + n, device=device)
    positions = _as_tensor(name, given)
    if positions.shape != (n,) or positions.dtype.is_floating_point or positions.dtype == torch.bool:
        raise InputError(f"{name} must be {n} integers; it is {positions.dtype} {tuple(positions.shape)}.")
    return positions.to(device=device, dtype=torch.int64)


def checked_documents(
    documents: Sequence[int] | Int[Tensor, " document"] | None, n_keys: int, device: torch.device
) -> Int[Tensor, " document"] | None:
    """Rows of k at which documents begin, ascending from 0; None where there is one."""
    if documents is None:
        return None
    starts = checks.wholes("documents", documents, at_least=0, at_most=n_keys - 1)
    if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
        raise InputError(
            f"documents={checks.shown(documents)}: give the rows of k at which documents begin, ascending from 0"
        )
    return torch.tensor(starts, device=device) if len(starts) > 1 else None


def _as_tensor(name: str, given: Any) -> Tensor:
    """The tensor that was given, not a list that might be one."""
    if not isinstance(given, Tensor):
        raise InputError(f"{name}={checks.shown(given)}: give a tensor of one value per token")
    return given
