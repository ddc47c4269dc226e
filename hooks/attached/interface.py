"""Where an attached model meets transformers: one attention function and one mask function, registered by name.

Source: transformers 5.23.0, ``modeling_utils.AttentionInterface``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from hooks.attached.masks import HandedMask, MaskRules, handed_mask, table_rules
from hooks.config.attention_spec import AttentionSpec
from hooks.errors import AttachError
from hooks.functional.attend import attend_fused
from hooks.functional.head_width import same_width

IMPLEMENTATION = "ropescope"
HANDLER = "_ropescope_attend"
# Arguments that change a pattern in ways that an AttentionSpec has no word for.
_FOREIGN = ("position_bias", "head_mask", "indices", "attention_bias", "alibi")

Attend = Callable[..., Tensor]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
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
    elif isinstance(attention_mask, HandedMask):
        rules = attention_mask.rules
    else:
        rules = table_rules(attention_mask, sliding_window)
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
    return attend(q, k, v, spec, rules, others.get("position_ids")), None


def attend_plainly(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, rules: MaskRules, position_ids: Any = None
) -> Tensor:
    """Attend where nobody watches; heads of q, k and v may differ in width."""
    q, k, v, width = same_width(q, k, v)
    return attend_fused(q, k, v, spec, rules.place)[..., :width]


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
    AttentionMaskInterface.register(IMPLEMENTATION, handed_mask)
