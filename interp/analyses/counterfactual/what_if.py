"""What another rotation would do: directly, from captured q and k, and in full, with a new run of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from hooks import AttentionSpec, HookedTransformer, RopeConfig, checks
from hooks.config.rope_inherited import RopeSetting
from hooks.errors import InputError, StageError
from interp.analyses.counterfactual.recompute import recompute, silenced
from interp.analyses.counterfactual.schedules import schedule_of, steps_under
from interp.analyses.counterfactual.schema import WHAT_IF_ROPE
from interp.analyses.position.losses import binned_loss, loss_by_position
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.common.stacking import stack_layers
from interp.measure.schema import GROUPS
from interp.measure.statistics import attention_statistics
from interp.tensors.capture_data import CaptureData, check_capture


def what_if_rope(
    cap: CaptureData,
    rope: RopeSetting,
    *,
    alibi_slopes: Sequence[float] | None = None,
    zero_pairs: int | slice | Sequence[int] = (),
    model: HookedTransformer | None = None,
    groups: Sequence[str] = GROUPS,
) -> xr.Dataset:
    """Attention as it ran, beside attention under another rotation of the same queries and keys.

    q and k from before the rotation go through the steps that follow once more, the norm and the clip after a rotation
    included, and are measured anew. This is the direct effect: every layer still reads the residual stream that the
    model really had. In the first layer it is the whole effect. With ``model``, a third variant "full" is a new run
    under the setting (`HookedTransformer.with_config`), in which each layer also reads what the changed layers before
    it wrote, with its loss beside the capture's.

    Args:
        cap: a capture with the stage ``pre_rope`` (`capture` keeps it unless told otherwise).
        rope: the schedule to try; fields left unset are the model's own. A mapping by layer type where these differ;
            types left out stay as they are. None rotates nothing; ``cap.cfg.rope`` keeps the schedule, to change only
            what follows. Layers that the model exempts from rotation stay exempt.
        alibi_slopes: one slope per head, in all layers: with ``rope=None``, ALiBi instead of RoPE.
        zero_pairs: frequency pairs, by index, slice or several indices, whose features become 0: they then add nothing
            to any score.
        model: the model that was captured, for the full effect.
        groups: families of statistics, see `interp.attention_statistics`.

    Returns:
        The Dataset of `Capture.statistics` with a leading dimension ``variant``: "as_run", "what_if", and "full" if
        there is a model. With it also loss_mean and loss_stderr [nats] (variant, position_bin), NaN for "what_if",
        which has no loss, with coordinates first_position and last_position.

    Raises:
        StageError: the capture lacks the stage before the rotation, or no layer rotates.
        ConfigError: a schedule that is incomplete or does not fit the model.
        InputError: slopes or pairs that do not fit the heads, a model other than the captured one, or a model beside a
            capture of packed documents.

    Source:
        arXiv 2309.00071 (schedules), 2108.12409 (ALiBi), 2410.06205 (which frequencies a head uses).

    Example:
        >>> ds = what_if_rope(cap, RopeConfig(rope_type="linear", factor=4.0))
        >>> ds.mean_distance.mean("query").sel(variant="what_if") - ds.mean_distance.mean("query").sel(variant="as_run")
    """
    check_capture(cap)
    if model is not None:
        checks.instance("model", model, HookedTransformer, "the model that was captured, or None")
        cap.check_one_text("what_if_rope with a model")
    alibi_slopes = None if alibi_slopes is None else checks.numbers("alibi_slopes", alibi_slopes)
    if alibi_slopes is not None and len(alibi_slopes) != cap.cfg.n_heads:
        raise InputError(f"alibi_slopes has {len(alibi_slopes)} entries for {cap.cfg.n_heads} heads: give one for each")
    schedules = {layer: schedule_of(cap, layer, rope) for layer in cap.layers}
    pairs = _pair_index(schedules, cap.cfg.d_head, zero_pairs)
    setting = _Setting(schedules, alibi_slopes, pairs)
    if not any(setting.touches(cap, layer) for layer in cap.layers):
        raise StageError(
            "no captured layer rotates, now or under this setting: give alibi_slopes, or capture layers that rotate"
        )
    variants = {"as_run": cap.statistics(groups=groups), "what_if": _direct_effect(cap, setting, groups)}
    losses = {}
    if model is not None:
        variants["full"], losses["full"] = _full_effect(cap, model, rope, setting, groups)
        if len(cap.loss):
            losses["as_run"] = loss_by_position(cap)
    out = _along(variants)
    if losses:
        out = out.merge(_losses(losses, list(variants)))
    out = out.assign_attrs(what_if=_in_words(rope, setting))
    return result_of(
        "what_if_rope", labelled(out, WHAT_IF_ROPE), "attention statistics as run and under another rotation"
    )


@dataclass(frozen=True)
class _Setting:
    """What is changed: the schedule of each layer, ALiBi, frequency pairs that are silenced."""

    schedules: Mapping[int, RopeConfig | None]
    alibi_slopes: tuple[float, ...] | None
    zero_pairs: tuple[int, ...]

    def touches(self, cap: CaptureData, layer: int) -> bool:
        """Whether the layer rotates or gets slopes, so that the setting concerns it."""
        rotates = "rope" in cap.steps(layer) or self.schedules[layer] is not None
        return rotates or self.alibi_slopes is not None

    def changes(self, cap: CaptureData, layer: int) -> bool:
        """Whether the layer's scores differ from those that the capture holds."""
        same = self.schedules[layer] == cap.cfg.rope_for(layer) and not self.zero_pairs and self.alibi_slopes is None
        unknown = cap.cfg.rope_for(layer) is None and "rope" in cap.steps(layer)
        return self.touches(cap, layer) and (unknown or not same)


def _pair_index(
    schedules: Mapping[int, RopeConfig | None], d_head: int, zero_pairs: int | slice | Sequence[int]
) -> tuple[int, ...]:
    """Indices of the frequency pairs to silence; a band that selects none would pass for one without effect."""
    n_pairs = max((rope.width(d_head) // 2 for rope in schedules.values() if rope is not None), default=0)
    is_slice = isinstance(zero_pairs, slice)
    try:
        pairs = list(range(n_pairs)[zero_pairs]) if is_slice else np.atleast_1d(np.asarray(zero_pairs)).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"zero_pairs={checks.shown(zero_pairs)}: give pairs by index, slice or list") from error
    if (pairs or is_slice) and not n_pairs:
        raise InputError("zero_pairs names frequency pairs, and under this setting nothing rotates: give a rope")
    if is_slice and not pairs:
        raise InputError(f"zero_pairs={zero_pairs} selects no frequency pair: they are 0 to {n_pairs - 1}")
    wrong = [pair for pair in pairs if type(pair) is not int or not 0 <= pair < n_pairs]
    if wrong:
        raise InputError(f"zero_pairs holds {wrong[0]}: the frequency pairs are 0 to {n_pairs - 1}")
    return tuple(sorted(set(pairs)))


def _direct_effect(cap: CaptureData, setting: _Setting, groups: Sequence[str]) -> xr.Dataset:
    """Statistics with the captured q and k rotated anew; layers that do not change keep those they have."""
    parts = {}
    for layer in track(cap.layers, "measuring what would be"):
        if not setting.changes(cap, layer):
            parts[layer] = cap.statistics([layer], groups).isel(layer=0, drop=True)
            continue
        rope, zeroed = setting.schedules[layer], setting.zero_pairs
        steps = steps_under(cap, layer, rope)
        q = recompute(cap, layer, "q", steps, rope, zero_pairs=zeroed)
        k = recompute(cap, layer, "k", steps, rope, zero_pairs=zeroed)
        spec = cap.spec(layer)
        if setting.alibi_slopes is not None:
            spec = replace(spec, alibi_slopes=setting.alibi_slopes)
        parts[layer] = _measure(cap, layer, q, k, _values(cap, layer), spec, groups)
    return stack_layers(parts)


def _values(cap: CaptureData, layer: int) -> Tensor | None:
    """Values of a layer, None when the capture was made from a cache without them."""
    try:
        return cap.v(layer)
    except StageError:
        return None


def _measure(
    cap: CaptureData, layer: int, q: Tensor, k: Tensor, v: Tensor | None, spec: AttentionSpec, groups: Sequence[str]
) -> xr.Dataset:
    """Statistics of one layer as `Capture.statistics` computes them."""
    w_o = None if v is None else cap.constants(layer).w_o
    return attention_statistics(q, k, spec, v=v, w_o=w_o, groups=groups, **cap.standing)


@torch.no_grad()
def _full_effect(
    cap: CaptureData, model: HookedTransformer, rope: RopeSetting, setting: _Setting, groups: Sequence[str]
) -> tuple[xr.Dataset, xr.Dataset]:
    """Statistics and loss of a new run; each layer is measured as it passes, so that none is kept."""
    if not hasattr(model, "with_config"):
        raise InputError(
            f"a {type(model).__name__} cannot run under another setting: load it with HookedTransformer.from_pretrained"
        )
    if not cap.cfg.computes_like(model.cfg):
        raise InputError("the model is not the one that was captured: their configurations differ")
    changes: dict[str, Any] = {"rope": rope}
    if rope is None:
        changes["nope_layers"] = ()
    if setting.alibi_slopes is not None:
        changes["alibi_slopes"] = setting.alibi_slopes
    changed = model.with_config(**changes)
    parts, passing = {}, {}

    def keep(tensor: Tensor, hook: HookPoint, *, layer: int, name: str) -> None:
        passing[name] = tensor[0]
        if name == "v":
            spec = changed.attention_spec(layer)
            parts[layer] = _measure(cap, layer, passing["q"], passing["k"], passing["v"], spec, groups)
            passing.clear()

    def silence(table: Tensor, hook: HookPoint) -> Tensor:
        return silenced(table, setting.zero_pairs)

    watch: list[tuple[Any, Any]] = [
        (f"blocks.{layer}.attn.hook_{name}_final", partial(keep, layer=layer, name=name))
        for layer in cap.layers
        for name in "qkv"
    ]
    if setting.zero_pairs:
        watch += [(f"rotary.{kind}.hook_{name}", silence) for kind in changed.rotary for name in ("cos", "sin")]
    with changed.hooks(fwd_hooks=watch):
        nll = changed.loss_per_token(cap.tokens[None].to(changed.device))[0]
    return stack_layers(parts), binned_loss(nll, cap.positions)


def _along(variants: "Mapping[str, xr.Dataset]") -> xr.Dataset:
    """Datasets of the same layers stacked along a leading dimension."""
    attrs = {"description": "as_run: as captured; what_if: direct effect on each layer; full: the model run anew"}
    return xr.concat(
        list(variants.values()),
        dim=xr.IndexVariable("variant", list(variants), attrs),
        data_vars="all",
        coords="minimal",
        compat="override",
        join="outer",
        combine_attrs="override",
    )


def _losses(losses: "Mapping[str, xr.Dataset]", variants: list[str]) -> xr.Dataset:
    """Loss by stretch of positions for each variant that ran, NaN for the others."""
    both = _along({name: loss[["loss_mean", "loss_stderr"]] for name, loss in losses.items()})
    return both.reindex(variant=variants).transpose("variant", ...)


def _in_words(rope: RopeSetting, setting: _Setting) -> str:
    """The setting as one line."""
    words = [f"rope={rope!r}"]
    if setting.alibi_slopes is not None:
        words.append(f"alibi_slopes={setting.alibi_slopes}")
    if setting.zero_pairs:
        words.append(f"zero_pairs={setting.zero_pairs}")
    return ", ".join(words)
