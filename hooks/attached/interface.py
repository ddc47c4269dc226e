"""Where an attached model meets transformers: one attention function and one mask function, registered by name.

The mask function hands the rule of a mask on instead of its n × n table, so nothing of that size is ever built.
Source: transformers 5.23.0, ``masking_utils.py`` and ``modeling_utils.AttentionInterface``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    prepare_padding_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import AttachError
from hooks.functional.attend import attend_fused
from hooks.functional.place import Place
from hooks.functional.visible import visible_keys

IMPLEMENTATION = "ropescope"
HANDLER = "_ropescope_attend"
_ANYTHING: Any = object()
_ROWS = 256
# Arguments that change a pattern in ways that an AttentionSpec has no word for.
_FOREIGN = ("position_bias", "head_mask", "indices", "attention_bias", "alibi")

Attend = Callable[[Tensor, Tensor, Tensor, AttentionSpec, Place], Tensor]


@dataclass(frozen=True)
class MaskRules:
    """What a mask says: AttentionSpec's rules, padding, and the index of the first query; or why it has no rule."""

    causal: bool = True
    window: int | None = None
    key_mask: Tensor | None = None
    query_start: int = 0
    problem: str | None = None


def mask_rules(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **_: Any,
) -> MaskRules:
    """The rules behind a mask that transformers is about to build; called in place of building it."""
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        padding = padding[:, kv_offset : kv_offset + kv_length].bool()
        padding = None if bool(padding.all()) else padding
    shared = {"key_mask": padding, "query_start": int(q_offset) - int(kv_offset)}
    if _same(mask_function, causal_mask_function):
        return MaskRules(**shared)
    if _same(mask_function, bidirectional_mask_function):
        return MaskRules(causal=False, **shared)
    if local_size is not None:
        if _same(mask_function, sliding_window_causal_mask_function(local_size)):
            return MaskRules(window=local_size, **shared)
        if _same(mask_function, sliding_window_bidirectional_mask_function(local_size)):
            return MaskRules(causal=False, window=local_size + 1, **shared)
        if _same(mask_function, chunked_causal_mask_function(local_size, _ANYTHING)):
            far = kv_offset + kv_length > local_size
            problem = f"it attends within chunks of {local_size} tokens; run at most {local_size} tokens at once"
            return MaskRules(**shared, problem=problem if far else None)
    return MaskRules(
        **shared,
        problem="its mask is neither causal, sliding nor padding (packed sequences or blocks of image tokens); "
        "run one text sequence, with an attention_mask of ones if position_ids have gaps",
    )


def _same(rule: Any, known: Any) -> bool:
    """Whether two mask functions are the same code over the same values."""
    if known is _ANYTHING:
        return True
    if isinstance(rule, FunctionType) and isinstance(known, FunctionType):
        cells = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (rule, known)]
        return rule.__code__ is known.__code__ and _same(tuple(cells[0]), tuple(cells[1]))
    if isinstance(rule, tuple) and isinstance(known, tuple):
        return len(rule) == len(known) and all(map(_same, rule, known))
    return type(rule) is type(known) and rule == known


def table_rules(mask: Tensor, window: int | None) -> MaskRules:
    """The rules behind a mask that arrives as a [batch 1 query key] table, if it follows any."""
    visible = mask if mask.dtype == torch.bool else mask == 0
    hidden_well = mask.dtype == torch.bool or bool((visible | (mask <= torch.finfo(mask.dtype).min / 2)).all())
    if mask.ndim == 4 and mask.shape[1] == 1 and hidden_well:
        visible = visible[:, 0]
        key_mask, start = visible.any(1), mask.shape[-1] - mask.shape[-2]
        for causal, reach in ((True, None), (True, window), (False, None)):
            rules = MaskRules(causal, reach, key_mask, start)
            if _follows(visible, rules):
                return rules
    return MaskRules(problem="it is handed a table of its own as mask; give attention_mask as [batch pos]")


def _follows(visible: Tensor, rules: MaskRules) -> bool:
    """Whether a [batch query key] table of what is visible is what the rules say."""
    spec = AttentionSpec(1.0, causal=rules.causal, window=rules.window)
    keys = torch.arange(visible.shape[2], device=visible.device)
    for start in range(0, visible.shape[1], _ROWS):
        block = visible[:, start : start + _ROWS]
        rows = rules.query_start + start + torch.arange(block.shape[1], device=visible.device)
        if not torch.equal(visible_keys(spec, rows, keys, rules.key_mask).expand_as(block), block):
            return False
    return True


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: MaskRules | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls on an attached model; [batch head pos d_head] in, z out."""
    name = type(module).__name__
    foreign = [other for other in _FOREIGN if others.get(other) is not None]
    if foreign or dropout:
        what = f"{', '.join(foreign)}, which no AttentionSpec can say" if foreign else f"dropout {dropout}"
        way = "detach() runs the model as it is" if foreign else "call model.eval() first, or set its dropout to 0"
        raise AttachError(f"{name} attends with {what}; {way}")
    if attention_mask is None:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        rules = MaskRules(bool(causal), sliding_window, None, key.shape[2] - query.shape[2])
    elif isinstance(attention_mask, Tensor):
        rules = table_rules(attention_mask, sliding_window)
    else:
        rules = attention_mask
    if rules.problem is not None:
        raise AttachError(f"{name} cannot run attached on this input: {rules.problem}")
    spec = AttentionSpec(
        scale=float(scaling if scaling is not None else query.shape[-1] ** -0.5),
        causal=rules.causal,
        window=rules.window,
        softcap=softcap or None,
        sinks=s_aux,
    )
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if k.shape[0] == 1 < q.shape[0]:
        k, v = k.expand(q.shape[0], -1, -1, -1), v.expand(q.shape[0], -1, -1, -1)
    attend: Attend = module.__dict__.get(HANDLER, attend_plainly)
    if _recorder is not None:
        _recorder(module, q, k, v, spec)
    return attend(q, k, v, spec, Place(rules.query_start, rules.key_mask)), None


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, place: Place) -> Tensor:
    """Attend where nobody watches; heads of q, k and v may differ in width."""
    q, k, v, width = same_width(q, k, v)
    return attend_fused(q, k, v, spec, place)[..., :width]


def same_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """q, k and v padded with zeros to one head width, which leaves scores and z as they are; and z's width."""
    width, z_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    if q.shape[-1] != z_width:
        q, k, v = (nn.functional.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    return q, k, v, z_width


_recorder: Callable[[nn.Module, Tensor, Tensor, Tensor, AttentionSpec], None] | None = None


@contextmanager
def recording(recorder: Callable[[nn.Module, Tensor, Tensor, Tensor, AttentionSpec], None]) -> Iterator[None]:
    """Show every call of the attention function to `recorder`."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before


def register() -> None:
    """Make the two functions known to transformers."""
    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, mask_rules)
