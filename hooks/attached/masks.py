"""The masks of an attached model: each mask's rule in place of its n × n table, which is never built.

Source: transformers 5.23.0, ``masking_utils.py``.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    packed_sequence_mask_function,
    prepare_padding_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import AttachError
from hooks.functional.place import Place
from hooks.functional.visible import visible_keys

_ANYTHING: Any = object()
_ROWS = 256
# A rule by position of transformers' newer releases; the older ones keep the rule by index.
_remap: Any = getattr(masking_utils, "remap_positions_for_packed_sequence", None)
# What code may ask of a mask, or do with it, that leaves it the mask it was.
_HARMLESS = {"__get__", "size", "dim", "numel", "is_floating_point", "__len__", "to", "type", "contiguous", "expand"}


@dataclass(frozen=True)
class MaskRules:
    """What a mask says: AttentionSpec's rules and padding; or why it has no rule.

    Attributes:
        causal: whether no query sees a later key.
        window: how many keys a query sees.
        key_mask: False where a key is padding.
        query_start: index of the first query among the keys.
        first_key: index of the first key in the whole text, of which a sliding cache keeps the end.
        key_positions: number of the keys, padding not counted, [batch key]; None where their indices are their numbers.
        documents: indices at which packed documents begin, [batch document]; None where there is one.
        problem: why the mask has no rule.
    """

    causal: bool = True
    window: int | None = None
    key_mask: Tensor | None = None
    query_start: int = 0
    first_key: int = 0
    key_positions: Tensor | None = None
    documents: Tensor | None = None
    problem: str | None = None

    @property
    def place(self) -> Place:
        """Where its queries and keys stand, positions left out."""
        return Place(self.query_start, self.key_mask, documents=self.documents)


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
    shared: dict[str, Any] = {"query_start": int(q_offset) - int(kv_offset), "first_key": int(kv_offset)}
    if padding is not None and not bool(padding.all()):
        keys = slice(kv_offset, kv_offset + kv_length)
        if not bool(padding[:, keys].all()):
            shared["key_mask"] = padding[:, keys].bool()
        shared["key_positions"] = _counted(padding)[:, keys]
    mask_function, shared["documents"] = _unpacked(mask_function)
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
        problem="its mask is neither causal, sliding, packed documents nor padding (blocks of image tokens); "
        "run one text sequence, with an attention_mask of ones if position_ids have gaps",
    )


def _unpacked(mask_function: Any) -> tuple[Any, Tensor | None]:
    """The rule that holds within each packed document, and where documents begin; None where they are not told apart.

    transformers writes ``and_masks(rule by position, same document)``. Within a document positions rise by 1, so that a
    rule by position is the same rule by index.
    """
    match _closure(mask_function, and_masks(causal_mask_function)):
        case {"mask_functions": (rule, same)}:
            numbers = _closure(same, packed_sequence_mask_function(_ANYTHING)).get("packed_sequence_mask")
            if isinstance(numbers, Tensor):
                within = _closure(rule, _remap(causal_mask_function, _ANYTHING)) if _remap is not None else {}
                return within.get("mask_function", rule), _starts(numbers)
    return mask_function, None


def _closure(rule: Any, known: FunctionType) -> dict[str, Any]:
    """What a mask function closes over, by name, if it is of the same code as a known one."""
    if not isinstance(rule, FunctionType) or rule.__code__ is not known.__code__:
        return {}
    cells = rule.__closure__ or ()
    return dict(zip(rule.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True))


def _starts(numbers: Tensor) -> Tensor:
    """Where documents begin, from the number of each token's document; filled up with the number of tokens."""
    n = numbers.shape[1]
    begins = torch.nn.functional.pad(numbers.diff() != 0, (1, 0), value=True)
    starts = torch.arange(n, device=numbers.device).expand_as(begins).masked_fill(~begins, n).sort().values
    return starts[:, : int(begins.sum(1).max())]


def _counted(real: Tensor) -> Tensor:
    """Number of each token, padding not counted, as transformers' ``generate`` counts them."""
    return (real.long().cumsum(-1) - 1).clamp(min=0)


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
            rules = MaskRules(causal, reach, key_mask, start, key_positions=_counted(key_mask))
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


class MaskEditError(AttachError):
    """Code of the model works on the numbers of a mask that has none."""


class HandedMask(Tensor):
    """What a model gets in place of its mask: of a mask's shape, without its memory, and with the mask's rules.

    The model is to hand it on as it is. Code that reads or edits the numbers of its mask would do so on numbers that
    are not there, so it gets an error that says so.
    """

    rules: MaskRules

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Let the mask be asked for its shape and handed on; refuse the rest."""
        mask = next((each for each in args if isinstance(each, HandedMask)), None)
        name = getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunctionSubclass():
            if mask is not None and name in _HARMLESS | {"__getitem__"}:
                found = func(*args, **(kwargs or {}))
                if not isinstance(found, Tensor):
                    return found
                if found.shape == mask.shape:
                    return mask
        raise MaskEditError(
            f"this model works on its attention mask itself ({name} in {_caller()}), between making it and attending; "
            "attached, a mask is a rule without numbers, so what a query sees there cannot be told"
        )

    def __repr__(self, **_: Any) -> str:
        return f"HandedMask({self.rules})"


def handed_mask(batch_size: int, q_length: int, kv_length: int, *, device: Any = None, **asked: Any) -> HandedMask:
    """The mask function that transformers calls on an attached model; arguments as in `mask_rules`."""
    rules = mask_rules(batch_size, q_length, kv_length, **asked)
    shape = (int(batch_size), 1, int(q_length), int(kv_length))
    mask = torch.ones((), dtype=torch.bool, device=device).expand(shape).as_subclass(HandedMask)
    mask.rules = rules
    return mask


def _caller() -> str:
    """The line of code outside torch and this file that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename):
        frame = frame.f_back
    return "its code" if frame is None else f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
