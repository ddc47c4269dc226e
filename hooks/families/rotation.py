"""RopeReader: a family's rotation from config.json, as transformers' code for that family reads it, or an error.

Source: transformers 5.23.0, ``modeling_rope_utils.RotaryEmbeddingConfigMixin`` and the families' own
``convert_rope_params_to_dict``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hooks.checks import shown
from hooks.config.rope import RopeConfig
from hooks.config.rules import LAYER_TYPES
from hooks.errors import ConfigError
from hooks.families.settings import Settings

Rope = RopeConfig | dict[str, RopeConfig | None] | None
# What RopeConfig.from_hf reads beside the keys of each family.
ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"})


@dataclass(frozen=True)
class RopeReader:
    """Reads a family's rotation in any spelling that config.json files use; a missing base is its default, on record.

    Attributes:
        share: the config.json key for the share of a head that rotates; None where whole heads do.
        interleaved: adjacent features form a pair.
        nope_on_full: full layers do not rotate where the model has a window.
        types: what transformers' code for the family runs; None = every rope_type.
        local_theta: where layer types rotate differently, the key of the sliding layers' base; None where all layers
            rotate alike.
        alpha: HunYuan's static NTK factor has a meaning.
    """

    share: str | None = None
    interleaved: bool = False
    nope_on_full: bool = False
    types: tuple[str, ...] | None = None
    local_theta: str | None = None
    alpha: bool = False

    def __call__(self, hf: Settings) -> Rope:
        """The schedule, or one for each layer type; None where positions are not rotary."""
        self._check_form(hf)
        if self.local_theta is None:
            hf.read.update(ROPE_KEYS)
            rope = RopeConfig.from_hf(self._with_defaults(hf))
        else:
            hf.read.update(ROPE_KEYS - {"original_max_position_embeddings"})
            rope = RopeConfig.from_hf(self._by_layer_type(hf, self.local_theta))
        if isinstance(rope, dict):
            return {name: each and self._finish(each, hf) for name, each in rope.items()}
        rope = rope and self._finish(rope, hf)
        if self.nope_on_full and hf.optional("sliding_window") is not None:
            return {"sliding_attention": rope, "full_attention": None}
        return rope

    def _check_form(self, hf: Settings) -> None:
        """Raise for a form that transformers' code for the family reads as something else, or not at all."""
        family = hf.family.model_type
        for name in ("rope_parameters", "rope_scaling"):
            block = hf.raw.get(name)
            if not isinstance(block, Mapping) or not block:
                continue
            nested = any(key in LAYER_TYPES or isinstance(value, Mapping) for key, value in block.items())
            if nested and (self.local_theta is None or name == "rope_scaling"):
                raise ConfigError(
                    f"{name} has settings for each layer type: transformers' {family} reads one schedule there; write "
                    "that one alone"
                )
            if self.local_theta and not nested and name == "rope_parameters":
                raise ConfigError(
                    f"rope_parameters has one schedule: transformers' {family} passes over it, since its layer types "
                    "rotate differently; write it under 'full_attention' or 'sliding_attention'"
                )
            for entry in block.values() if nested else [block]:
                if isinstance(entry, Mapping):
                    self._check_entry(entry, f"{name} of this {family} model", nested=nested)

    def _check_entry(self, entry: Mapping[str, Any], where: str, *, nested: bool) -> None:
        """Raise for a setting of one schedule that transformers' code passes over."""
        if entry.get("alpha") is not None and not self.alpha:
            raise ConfigError(f"{where} has alpha={shown(entry['alpha'])}, which transformers does not read there")
        if nested and entry.get("truncate") is False:
            raise ConfigError(f"{where} has truncate=False under a layer type, where transformers does not look for it")
        if self.local_theta and not nested and entry.get("rope_type", entry.get("type")) != entry.get("rope_type"):
            raise ConfigError(f"{where} has type={shown(entry['type'])}: its code in transformers reads rope_type only")

    @staticmethod
    def _by_layer_type(hf: Settings, local_theta: str) -> dict[str, Any]:
        """The file with a schedule for each layer type, filled in as transformers' Gemma 3 and OLMo 3 do it.

        A rope_scaling is for full layers; a layer type that has no entry, or null, rotates without one.
        """
        block, scaling = (hf.raw.get(name) or {} for name in ("rope_parameters", "rope_scaling"))
        if not isinstance(block, Mapping) or not isinstance(scaling, Mapping):
            return {**hf.raw}  # which has its own error
        entries = {name: block.get(name) or {} for name in LAYER_TYPES}
        if not all(isinstance(entry, Mapping) for entry in entries.values()) or not block.keys() <= set(LAYER_TYPES):
            return {**hf.raw}
        full, sliding = (dict(entry) for entry in entries.values())
        differ = [key for key, value in scaling.items() if full.get(key, value) != value]
        if differ:
            raise ConfigError(f"rope_scaling and rope_parameters.full_attention differ in {differ[0]}; keep one")
        shared = hf.raw.get("rope_theta", hf.family.defaults["rope_theta"])
        if local_theta == "rope_theta" and "rope_theta" not in sliding and shared != hf.family.defaults["rope_theta"]:
            raise ConfigError(
                f"rope_theta={shown(shared)} at the top level: transformers' {hf.family.model_type} gives it to its "
                f"full layers and {hf.family.defaults['rope_theta']:g} to the sliding ones; write rope_theta under "
                "each layer type of rope_parameters"
            )
        full |= scaling
        for entry, key in ((full, "rope_theta"), (sliding, local_theta)):
            if entry.get("rope_theta") is None:
                entry["rope_theta"] = hf[key]
        rest = {key: value for key, value in hf.raw.items() if key not in {*ROPE_KEYS, "rope_local_base_freq"}}
        return {**rest, "rope_parameters": {"full_attention": full, "sliding_attention": sliding}}

    def _with_defaults(self, hf: Settings) -> dict[str, Any]:
        """The file, with what its family assumes where it says nothing."""
        blocks = {name for name in ("rope_parameters", "rope_scaling") if hf.raw.get(name)}
        assumed = ["rope_parameters"] if not blocks else []
        assumed += [] if "rope_parameters" in blocks else ["rope_theta", "rotary_emb_base"]
        assumed += ["original_max_position_embeddings"] if blocks else []
        return {**hf.raw, **{key: hf[key] for key in assumed if key in hf.family.defaults}}

    def _finish(self, rope: RopeConfig, hf: Settings) -> RopeConfig:
        """One schedule with the family's own share and pairing, checked against what its code runs."""
        family = hf.family.model_type
        if self.types is not None and rope.rope_type not in self.types:
            raise ConfigError(f"rope_type={rope.rope_type!r}: transformers' {family} runs {', '.join(self.types)} only")
        if self.share is not None:
            hf.read.add(self.share)
            again = hf.raw.get("partial_rotary_factor")
            if again is not None and again == hf[self.share]:
                hf.read.add("partial_rotary_factor")  # some versions of transformers wrote it beside GPT-NeoX' own name
            if rope.partial_rotary_factor is None:
                rope = replace(rope, partial_rotary_factor=hf[self.share])
        elif rope.partial_rotary_factor not in (None, 1.0) and rope.rope_type != "proportional":
            raise ConfigError(f"partial_rotary_factor={rope.partial_rotary_factor}: {family} rotates whole heads only")
        return replace(rope, interleaved=True) if self.interleaved else rope
