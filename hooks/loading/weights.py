"""Give a model its weights: every tensor of a checkpoint used exactly once, of the right shape, and finite."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor, nn

from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import WeightError
from hooks.families.family import Family, Part, PerHead, Source
from hooks.loading.precision import FLOATING
from hooks.modules.block import Block

ReadTensor = Callable[[str], Tensor]

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


@dataclass(frozen=True)
class Recipe:
    """How one of our parameters is made of a checkpoint's tensors.

    Attributes:
        source: the row's entry for it.
        theirs: the tensors that it needs, under the names that the checkpoint has for them.
        shape: what it must have.
    """

    source: Source
    theirs: tuple[str, ...]
    shape: torch.Size


def adopt_weights(
    model: TakesWeights,
    family: Family,
    tensors: Mapping[str, Tensor],
    where: str,
    *,
    read: ReadTensor | None = None,
    check_finite: bool = True,
) -> None:
    """Make `tensors` the parameters of `model`, sharing their memory where dtype and device already agree.

    Args:
        model: built on the meta device.
        family: how the checkpoint names its tensors.
        tensors: the checkpoint under its own names.
        where: what to call the checkpoint in errors.
        read: gives the values of a tensor by its name, where `tensors` has only shapes.
        check_finite: look for NaN and inf, which reads every byte.

    Raises:
        WeightError: a tensor is missing, left over, of the wrong shape, not floating point, or not finite.
    """
    read = read or tensors.__getitem__
    recipes = weight_recipes(model, family, tensors, read, where)
    adopted = {
        name: read_weight(recipe, read, model.cfg, where, check_finite=check_finite) for name, recipe in recipes.items()
    }
    if "unembed.weight" not in adopted and model.cfg.tie_word_embeddings:
        adopted["unembed.weight"] = adopted["embed.weight"]
    model.adopt_parameters(adopted)


def weight_recipes(
    model: TakesWeights, family: Family, tensors: Mapping[str, Tensor], read: ReadTensor, where: str
) -> dict[str, Recipe]:
    """How each parameter is made; every name and shape is checked, and of values only those that the family fixes.

    A tied unembedding has no recipe of its own, nor have learnable frequencies: they start from the schedule.

    Args:
        model: built on the meta device.
        family: how the checkpoint names its tensors.
        tensors: the checkpoint under its own names; they may be on the meta device.
        read: gives the values of one of them.
        where: what to call the checkpoint in errors.

    Raises:
        WeightError: a tensor is missing, left over, of the wrong shape, or not floating point.
    """
    named, prefix, originals = _named(model.cfg, family, tensors)
    used: set[str] = set()
    missing: list[str] = []
    recipes: dict[str, Recipe] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith("rotary."):
            continue
        if name == "unembed.weight" and model.cfg.tie_word_embeddings:
            used |= _tied(family, named, originals, read, prefix, where)
            continue
        source = _source(family, name)
        heads = range(parameter.shape[0]) if isinstance(source, PerHead) else range(1)
        theirs = [_template(source).format(p=prefix, i=_layer(name), h=head) for head in heads]
        absent = [each for each in theirs if each not in named]
        if absent:
            missing += absent
            continue
        used.update(theirs)
        parts = {each: named[each].to("meta") for each in theirs}
        _check(theirs[0], _put_together(source, parts, model.cfg, where), parameter.shape, where)
        recipes[name] = Recipe(source, tuple(originals.get(each, each) for each in theirs), parameter.shape)
    if missing:
        raise WeightError(f"{where} lacks {_some(missing)}; {_why_missing(missing, family)}")
    extra = [t for t in named if t not in used and not _is_known(t, read, originals, family, where)]
    if extra:
        raise WeightError(
            f"{where} has weights with no place in the model that its config describes: {_some(sorted(extra))}"
        )
    return recipes


def read_weight(
    recipe: Recipe, read: ReadTensor, cfg: HookedTransformerConfig, where: str, *, check_finite: bool = True
) -> nn.Parameter:
    """One of our parameters, of the model's type and on its device.

    Raises:
        WeightError: it is not finite, or its values are not there.
    """
    tensor = _put_together(recipe.source, {each: read(each) for each in recipe.theirs}, cfg, where)
    name = recipe.theirs[0]
    if tensor.is_meta:
        raise WeightError(f"{name} in {where} is on the meta device; load the model onto a real device")
    cast = tensor.detach().to(device=cfg.device, dtype=cfg.dtype)
    _check_finite(name, tensor, cast, where, always=check_finite)
    return nn.Parameter(cast)


def check_sizes(cfg: HookedTransformerConfig, family: Family, tensors: Mapping[str, Tensor], where: str) -> None:
    """Hold the sizes that a config names against the tensors that are there, before anything of those sizes is made.

    Only what is there is looked at, and of the layers the first one: `adopt_weights` finds what is missing.

    Args:
        cfg: the architecture.
        family: how the checkpoint names its tensors.
        tensors: the checkpoint under its own names; they may be on the meta device.
        where: what to call the checkpoint in errors.

    Raises:
        WeightError: there are fewer layers than the config has, or a tensor of another shape.
    """
    named, prefix, _ = _named(cfg, family, tensors)
    layers = _layers(family, named, prefix)
    if layers and cfg.n_layers > len(layers):
        absent = next(i for i in range(cfg.n_layers) if i not in layers)
        raise WeightError(
            f"the config of {where} has {cfg.n_layers} layers and the checkpoint {len(layers)}: it lacks layer {absent}"
            "; fetch the other files, or mend the config"
        )
    if not layers:
        example = _template(_source(family, "blocks.0.attn.q_proj.weight")).format(p=prefix, i=0, h=0)
        raise WeightError(
            f"{where} lacks {example}, and has no other layer; it is not a {family.model_type} checkpoint"
        )
    try:
        with torch.device("meta"):
            shapes = {f"blocks.0.{name}": value.shape for name, value in Block(cfg, 0, "meta").named_parameters()}
    except RuntimeError as error:
        raise WeightError(f"the sizes in the config of {where} cannot be built: {error}") from error
    shapes["embed.weight"] = torch.Size((cfg.d_vocab, cfg.d_model))
    for name, shape in shapes.items():
        source = _source(family, name)
        heads = range(shape[0]) if isinstance(source, PerHead) else range(1)
        theirs = [_template(source).format(p=prefix, i=0, h=head) for head in heads]
        if all(each in named for each in theirs):
            parts = {each: named[each].to("meta") for each in theirs}
            _check_shape(theirs[0], _put_together(source, parts, cfg, where), shape, where)


def _named(
    cfg: HookedTransformerConfig, family: Family, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """The tensors under today's names, what stands before the decoder's names in this checkpoint, its own names.

    A tied checkpoint may keep its one matrix under the name of the unembedding alone.
    """
    originals = {family.renamed.get(name, name): name for name in tensors}
    named = {name: tensors[theirs] for name, theirs in originals.items()}
    embed, head = (_template(family.weights[name]) for name in ("embed.weight", "unembed.weight"))
    marks = (embed, _template(_source(family, "blocks.0.attn.q_proj.weight")).replace("{i}", "0"))
    prefix = next((p for mark in marks for p in family.prefixes if mark.format(p=p) in named), family.prefixes[0])
    ours, theirs = embed.format(p=prefix), head.format(p=prefix)
    if cfg.tie_word_embeddings and ours not in named and theirs in named:
        named[ours], originals[ours] = named[theirs], originals[theirs]
    return named, prefix, originals


def _layers(family: Family, tensors: Mapping[str, Tensor], prefix: str) -> set[int]:
    """The layers that have a tensor."""
    start = _template(_source(family, "blocks.0.attn.q_proj.weight")).format(p=prefix, i="\0", h=0).split("\0")[0]
    numbers = (name.removeprefix(start).split(".")[0] for name in tensors if name.startswith(start))
    return {int(number) for number in numbers if number.isdecimal()}


def _why_missing(missing: list[str], family: Family) -> str:
    """What a checkpoint without these tensors may be, and what to do with it."""
    if missing == [_template(family.weights["unembed.weight"])]:
        return (
            "it is the body of a model, without a head that gives logits (an embedding model, for example); "
            "HookedTransformer.attach(AutoModel.from_pretrained(…)) hooks its attention as it is"
        )
    return f"it is not a whole {family.model_type} checkpoint"


def _put_together(source: Source, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig, where: str) -> Tensor:
    """One of our weights from the tensor that holds it, or from those of its heads."""
    parts = list(tensors.values())
    try:
        if isinstance(source, Part):
            return source.take(parts[0], cfg)
        return torch.stack(parts) if isinstance(source, PerHead) else parts[0]
    except RuntimeError as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise WeightError(f"shapes {shapes} in {where} do not fit the config: {error}") from error


def _is_known(name: str, read: ReadTensor, originals: Mapping[str, str], family: Family, where: str) -> bool:
    """Whether a tensor that no weight came from may be there.

    Raises:
        WeightError: it should hold a constant and holds another value.
    """
    for pattern, value in family.fixed_weights.items():
        if fnmatchcase(name, pattern):
            tensor = read(originals[name])
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


def _tied(
    family: Family,
    tensors: Mapping[str, Tensor],
    originals: Mapping[str, str],
    read: ReadTensor,
    prefix: str,
    where: str,
) -> set[str]:
    """A tied checkpoint may repeat its embedding as the unembedding, but only the same values."""
    head, embed = (_template(family.weights[n]).format(p=prefix) for n in ("unembed.weight", "embed.weight"))
    if head not in tensors or embed not in tensors:
        return set()
    if originals[head] != originals[embed]:
        ours, theirs = read(originals[embed]), read(originals[head])
        if ours.data_ptr() != theirs.data_ptr() and not torch.equal(ours, theirs):
            raise WeightError(
                f"{where} ties its embeddings, but {head} differs from {embed}; set tie_word_embeddings=false"
            )
    return {head}


def _check(name: str, tensor: Tensor, shape: torch.Size, where: str) -> None:
    """Raise unless a tensor can be this parameter."""
    _check_shape(name, tensor, shape, where)
    if tensor.dtype not in FLOATING:
        raise WeightError(
            f"{name} in {where} is {str(tensor.dtype).removeprefix('torch.')}: the checkpoint is quantised; load it "
            "dequantised, or hook it as it is with HookedTransformer.attach(model)"
        )


def _check_shape(name: str, tensor: Tensor, shape: torch.Size, where: str) -> None:
    """Raise unless a tensor has the shape that the config gives it."""
    if tensor.shape != shape:
        raise WeightError(f"{name} in {where} has shape {tuple(tensor.shape)}, but the config makes it {tuple(shape)}")


def _check_finite(name: str, tensor: Tensor, cast: Tensor, where: str, *, always: bool) -> None:
    """Raise for NaN and infinity, which reads every byte; a cast to a type that reaches less far may make them."""
    reaches_less = torch.finfo(cast.dtype).max < torch.finfo(tensor.dtype).max
    # A sum is finite only if every term is, and needs no temporary as large as the tensor.
    if not (always or reaches_less) or torch.isfinite(cast.sum()) or torch.isfinite(cast).all():
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise WeightError(f"{name} in {where} has {bad} values that are NaN or infinite; the checkpoint is damaged")
    largest = f"{float(tensor.abs().max()):.6g}"
    raise WeightError(
        f"{name} in {where} reaches {largest}, which is infinite in {str(cast.dtype).removeprefix('torch.')}; "
        "use dtype='bfloat16' or dtype='float32'"
    )


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
