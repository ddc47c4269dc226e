"""Give a model its weights: every tensor of a checkpoint used exactly once, of the right shape, and finite."""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor, nn

from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import WeightError
from hooks.families.family import Family, Part, PerHead, Source

_LAYER = re.compile(r"^blocks\.(\d+)\.")
_SHOWN = 4
_STALE = ("*.rotary_emb.inv_freq",)  # files of older versions of transformers keep this buffer
_ROUNDING = 2**-8  # a constant may have been stored in bfloat16


class TakesWeights(Protocol):
    """What a model must offer to be given weights."""

    @property
    def cfg(self) -> HookedTransformerConfig:
        """The architecture that the weights must fit."""
        ...

    def named_parameters(self, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter by name."""
        ...

    def adopt_parameters(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Use these Parameter objects as the model's own."""
        ...


def adopt_weights(
    model: TakesWeights, family: Family, tensors: Mapping[str, Tensor], where: str, *, check_finite: bool = True
) -> None:
    """Make `tensors` the parameters of `model`, sharing their memory where dtype and device already agree.

    Args:
        model: built on the meta device.
        family: how the checkpoint names its tensors.
        tensors: the checkpoint under its own names.
        where: what to call the checkpoint in errors.
        check_finite: look for NaN and inf, which reads every byte.

    Raises:
        WeightError: a tensor is missing, left over, of the wrong shape, not floating point, or not finite.
    """
    tensors = {family.renamed.get(name, name): tensor for name, tensor in tensors.items()}
    prefix = _prefix(family, tensors)
    dtype, device = model.cfg.dtype, model.cfg.device
    used: set[str] = set()
    missing: list[str] = []
    adopted: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith("rotary."):
            continue  # learnable frequencies start from the schedule; no checkpoint has them
        if name == "unembed.weight" and model.cfg.tie_word_embeddings:
            used |= _tied(family, tensors, prefix, where)
            adopted[name] = adopted["embed.weight"]
            continue
        source = _source(family, name)
        heads = range(parameter.shape[0]) if isinstance(source, PerHead) else range(1)
        theirs = [_template(source).format(p=prefix, i=_layer(name), h=head) for head in heads]
        absent = [each for each in theirs if each not in tensors]
        if absent:
            missing += absent
            continue
        used.update(theirs)
        tensor = _put_together(source, {each: tensors[each] for each in theirs}, model, where)
        _check(theirs[0], tensor, parameter, where, check_finite)
        adopted[name] = nn.Parameter(tensor.detach().to(device=device, dtype=dtype))
    if missing:
        raise WeightError(f"{where} lacks {_some(missing)}; it is not a whole {family.model_type} checkpoint")
    extra = [t for t in tensors if t not in used and not _is_known(t, tensors[t], family, where)]
    if extra:
        raise WeightError(
            f"{where} has weights with no place in the model that its config describes: {_some(sorted(extra))}"
        )
    model.adopt_parameters(adopted)


def _prefix(family: Family, tensors: Mapping[str, Tensor]) -> str:
    """What stands before the decoder's names in this checkpoint."""
    name = _template(family.weights["embed.weight"])
    return next((p for p in family.prefixes if name.format(p=p) in tensors), family.prefixes[0])


def _put_together(source: Source, tensors: Mapping[str, Tensor], model: TakesWeights, where: str) -> Tensor:
    """One of our weights from the tensor that holds it, or from those of its heads."""
    parts = list(tensors.values())
    try:
        if isinstance(source, Part):
            return source.take(parts[0], model.cfg)
        return torch.stack(parts) if isinstance(source, PerHead) else parts[0]
    except RuntimeError as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise WeightError(f"shapes {shapes} in {where} do not fit the config: {error}") from error


def _is_known(name: str, tensor: Tensor, family: Family, where: str) -> bool:
    """Whether a tensor that no weight came from may be there.

    Raises:
        WeightError: it should hold a constant and holds another value.
    """
    for pattern, value in family.fixed_weights.items():
        if fnmatchcase(name, pattern):
            if bool(((tensor.float() - value).abs() > _ROUNDING * abs(value)).any()):
                raise WeightError(f"{name} in {where} is {tensor.tolist()}; {family.model_type} is built with {value}")
            return True
    return any(fnmatchcase(name, pattern) for pattern in (*_STALE, *family.ignored_weights))


def _source(family: Family, name: str) -> Source:
    """The row's entry for one of our parameters."""
    template = _LAYER.sub("blocks.{i}.", name)
    if template not in family.weights:
        raise WeightError(f"the row of {family.model_type} has no name for {template}")
    return family.weights[template]


def _template(source: Source) -> str:
    """The template of the tensor that holds a weight."""
    return source if isinstance(source, str) else source.name


def _layer(name: str) -> str:
    """The layer index in one of our names, or nothing."""
    match = _LAYER.match(name)
    return match[1] if match else ""


def _tied(family: Family, tensors: Mapping[str, Tensor], prefix: str, where: str) -> set[str]:
    """A tied checkpoint may repeat its embedding as the unembedding, but only the same values."""
    head, embed = (_template(family.weights[n]).format(p=prefix) for n in ("unembed.weight", "embed.weight"))
    if head not in tensors or embed not in tensors:
        return set()
    ours, theirs = tensors[embed], tensors[head]
    if ours.data_ptr() != theirs.data_ptr() and not torch.equal(ours, theirs):
        raise WeightError(
            f"{where} ties its embeddings, but {head} differs from {embed}; set tie_word_embeddings=false"
        )
    return {head}


def _check(name: str, tensor: Tensor, parameter: Tensor, where: str, check_finite: bool) -> None:
    """Raise unless a tensor can be this parameter."""
    if tensor.shape != parameter.shape:
        raise WeightError(
            f"{name} in {where} has shape {tuple(tensor.shape)}, but the config makes it {tuple(parameter.shape)}"
        )
    if not tensor.is_floating_point() or tensor.is_meta:
        state = "on the meta device" if tensor.is_meta else f"of type {tensor.dtype}"
        raise WeightError(f"{name} in {where} is {state}; load the model unquantised and onto a real device")
    if not check_finite:
        return
    # A sum is finite only if every term is, and needs no temporary as large as the tensor.
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise WeightError(f"{name} in {where} has {bad} values that are NaN or infinite; the checkpoint is damaged")


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
