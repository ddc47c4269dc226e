"""HookedTransformerConfig: TransformerLens' bridge config, with RoPE and QK-norm as nested, validated values.

TransformerLens' flat flags for the same things (``rotary_base``, ``use_qk_norm``, …: ``hooks.config.lens_flags``) build
the same model when they are given alone, raise when they contradict the nested form, and always read in step with
it: every assignment goes through the constructor's rules.

Source: transformer_lens 4.3, ``config/transformer_bridge_config.py``.
"""

import difflib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, Self

import torch
from transformer_lens.config import TransformerBridgeConfig, TransformerLensConfig

from hooks.checks import instance, whole
from hooks.config.attention_spec import AttentionSpec
from hooks.config.comparing import differing_settings
from hooks.config.lens_flags import FLAGS, apply_flags, check_flags, read_flags, said_elsewhere
from hooks.config.placing import computing_dtype, device_name
from hooks.config.qk_norm import QKNormConfig
from hooks.config.rope import RopeConfig
from hooks.config.rules import LAYER_TYPES, check_each, check_together
from hooks.errors import ConfigError, NarrowRotaryWarning

__all__ = ["HookedTransformerConfig", "LayerRopes", "QKNormConfig", "RopeConfig"]

LayerType = Literal["full_attention", "sliding_attention"]
_NARROW = 32


class LayerRopes(dict[str, RopeConfig | None]):
    """A schedule (or None: no rotation) for each layer type; read-only, so nothing bypasses validation."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ConfigError("rope is read-only: assign a new mapping, cfg.rope = {**cfg.rope, layer_type: …}")

    __setitem__ = __delitem__ = __ior__ = _refuse  # pyright: ignore[reportAssignmentType]
    clear = pop = popitem = setdefault = update = _refuse  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


class HookedTransformerConfig(TransformerBridgeConfig):
    """Everything that decides the model, in TransformerLens' terms plus the nested ones below.

    Args:
        d_model: Width of the residual stream.
        d_head: Size of one head.
        n_layers: Number of blocks.
        n_ctx: The trained length; not a limit, only a warning beyond it.
        n_heads: Query heads (d_model / d_head when left out).
        d_vocab: Size of the vocabulary.
        rope: The schedule, one for each layer type, or None: no rotation.
        qk_norm: The norm of q and k, or None.
        clip_qkv: Clamp q, k and v to ±this.
        clip_position: Right after the projection (OLMo), after the norm (OLMoE), or after the last step.
        layer_types: "full_attention" or "sliding_attention" for every layer; None = all full, or all
            sliding when ``window_size`` is given (and ``use_local_attn`` is not False).
        nope_layers: Layers without rotation although their type rotates.
        block_norms: "pre" (Llama), "post" (after attention and MLP: OLMo 2) or "sandwich" (both: Gemma).
        norm_scale_before_cast: Block norms multiply by the gain before casting back.
        norm_affine: Block norms have a gain.
        norm_bias: LayerNorm's β in the block norms.
        parallel_shared_norm: In a parallel block, the MLP reads what attention reads (Cohere) and has no norm of its
            own (GPT-NeoX has).
        attn_bias: Biases of the q, k and v projections.
        attn_out_bias: Bias of the output projection.
        mlp_bias: Biases of the MLP.
        unembed_bias: Bias of the unembedding.
        embed_scale: Multiplies the embedding.
        residual_scale: Multiplies what attention and MLP add to the residual stream (Granite); W_O, W_out and their
            biases read with it.
        logit_scale: Multiplies the logits.
        rope_in_float32: Rotate in float32 and cast back (OLMo 2).
        round_cos_sin: Round cos and sin to the model's type before rotating in float32 (Cohere).
        learned_sinks: One learned sink logit per head (gpt-oss).
        alibi_slopes: One slope per head.
        provenance: Constants that no file carried, and where each comes from.
        **transformer_lens: TransformerLens' own fields and flags (d_mlp, n_key_value_heads, act_fn, eps,
            window_size, attn_scale (the divisor; −1 = √d_head), attn_scores_soft_cap, rotary_base, …).

    Raises:
        ConfigError: A setting is unknown, missing, contradictory or out of range.
    """

    rope: RopeConfig | LayerRopes | None
    qk_norm: QKNormConfig | None
    clip_qkv: float | None
    clip_position: Literal["projection", "norm", "rope"]
    layer_types: tuple[LayerType, ...] | None
    nope_layers: tuple[int, ...]
    block_norms: Literal["pre", "post", "sandwich"]
    norm_scale_before_cast: bool
    norm_affine: bool
    norm_bias: bool
    parallel_shared_norm: bool
    attn_bias: bool
    attn_out_bias: bool
    mlp_bias: bool
    unembed_bias: bool
    embed_scale: float | None
    residual_scale: float | None
    logit_scale: float | None
    rope_in_float32: bool
    round_cos_sin: bool
    learned_sinks: bool
    alibi_slopes: tuple[float, ...] | None
    provenance: dict[str, str]

    def __init__(
        self,
        d_model: int,
        d_head: int,
        n_layers: int,
        n_ctx: int,
        n_heads: int = -1,
        d_vocab: int = -1,
        *,
        rope: RopeConfig | Mapping[str, RopeConfig | None] | None = None,
        qk_norm: QKNormConfig | None = None,
        clip_qkv: float | None = None,
        clip_position: Literal["projection", "norm", "rope"] = "projection",
        layer_types: Sequence[str] | None = None,
        nope_layers: Sequence[int] = (),
        block_norms: Literal["pre", "post", "sandwich"] | None = None,
        norm_scale_before_cast: bool = False,
        norm_affine: bool = True,
        norm_bias: bool = False,
        parallel_shared_norm: bool = False,
        attn_bias: bool = False,
        attn_out_bias: bool = False,
        mlp_bias: bool = False,
        unembed_bias: bool = False,
        embed_scale: float | None = None,
        residual_scale: float | None = None,
        logit_scale: float | None = None,
        rope_in_float32: bool = False,
        round_cos_sin: bool = False,
        learned_sinks: bool = False,
        alibi_slopes: Sequence[float] | None = None,
        provenance: Mapping[str, str] | None = None,
        **transformer_lens: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in _SETTINGS} | transformer_lens
        # None is TransformerLens' way of leaving these out.
        flags = {name: given.pop(name) for name in sorted(FLAGS & given.keys())}
        flags = {name: value for name, value in flags.items() if value is not None}
        fixed = {name for name in ("rope", "qk_norm", "layer_types", "block_norms") if given[name] is not None}
        fixed |= {"normalization_type"} & given.keys()
        self._build(given, flags, fixed)
        self._warn_if_narrow()

    def _build(self, given: dict[str, Any], flags: dict[str, Any], fixed: set[str]) -> None:
        """Set every attribute from settings and flags, checking all of them."""
        for name in given:
            if name not in _SETTINGS:
                _unknown(name)
        settings = {**_DEFAULTS, **given}
        settings["block_norms"] = settings["block_norms"] or "pre"
        check_each(settings)
        apply_flags(settings, flags, fixed)
        _normalise(settings)
        object.__setattr__(self, "_ready", False)
        try:
            super().__init__(**{name: settings[name] for name in _PARENT})
        except ValueError as error:
            raise ConfigError(str(error)) from error
        # The parent resolves some of its own (n_heads, d_mlp, device, initializer_range).
        settings |= {name: self.__dict__[name] for name in _PARENT}
        settings["initializer_range"] = float(settings["initializer_range"])
        check_together(settings, _DEFAULTS)
        check_flags(flags, settings)
        self.__dict__.update(settings | read_flags(settings))
        object.__setattr__(self, "_ready", True)

    def _warn_if_narrow(self) -> None:
        """Warn once for each rotated width under 32."""
        for rope in self._ropes():
            width = 2 * rope.rotated_pairs(self.d_head)
            if width < _NARROW:
                warnings.warn(
                    f"rotary_dim={width} is under {_NARROW}: it works, with {width // 2} angles to tell positions by",
                    NarrowRotaryWarning,
                    stacklevel=3,
                )

    def _ropes(self) -> list[RopeConfig]:
        """The distinct schedules."""
        ropes = self.rope.values() if isinstance(self.rope, Mapping) else [self.rope]
        return list(dict.fromkeys(rope for rope in ropes if rope is not None))

    def __setattr__(self, name: str, value: Any) -> None:
        if not self.__dict__.get("_ready", False) or name in self._BRIDGE_MANAGED_HOOK_FLAGS:
            super().__setattr__(name, value)
        elif name in _SETTINGS or name in FLAGS:
            self.__dict__.update(self.replace(**{name: value}).__dict__)
        elif name in self.__dict__ or name.startswith("_"):
            super().__setattr__(name, value)
        else:
            _unknown(name)

    def replace(self, **changes: Any) -> Self:
        """A new config with some settings changed, under the constructor's rules.

        Args:
            **changes: Settings or TransformerLens flags; a flag changes the nested setting it stands for.

        Returns:
            The new config; this one stays as it is.

        Raises:
            ConfigError: As the constructor; also a rotary flag where rope differs by layer type.
        """
        flags = {name: value for name, value in changes.items() if name in FLAGS}
        plain = {name: value for name, value in changes.items() if name not in FLAGS}
        new = object.__new__(type(self))
        new._build({name: self.__dict__[name] for name in _SETTINGS} | plain, flags, fixed=set(plain))
        if new.rope != self.rope or new.d_head != self.d_head:
            new._warn_if_narrow()
        return new

    def layer_type(self, layer: int) -> LayerType:
        """Kind of attention of one layer."""
        self._check_layer(layer)
        return "full_attention" if self.layer_types is None else self.layer_types[layer]

    def rope_for(self, layer: int) -> RopeConfig | None:
        """The schedule of one layer; None where it does not rotate."""
        layer_type = self.layer_type(layer)
        if layer in self.nope_layers:
            return None
        return self.rope[layer_type] if isinstance(self.rope, Mapping) else self.rope

    def window(self, layer: int) -> int | None:
        """How many positions one layer sees, itself included; None = all before it."""
        return self.window_size if self.layer_type(layer) == "sliding_attention" else None

    def attention_spec(self, layer: int) -> AttentionSpec:
        """How q and k of one layer become a pattern (learned sinks are weights, so the layer adds them)."""
        return AttentionSpec(
            scale=self.scale,
            causal=self.attention_dir == "causal",
            window=self.window(layer),
            softcap=self.softcap,
            alibi_slopes=self.alibi_slopes,
        )

    @property
    def n_kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_heads if self.n_key_value_heads is None else self.n_key_value_heads

    @property
    def d_vocab_out(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of logits, ``d_vocab`` where it was left out (−1)."""
        given = self.__dict__["d_vocab_out"]
        return self.d_vocab if given == -1 else given

    @d_vocab_out.setter
    def d_vocab_out(self, value: int) -> None:
        self.__dict__["d_vocab_out"] = value

    @property
    def softcap(self) -> float | None:
        """Bound of the scores, c·tanh(s/c); None = none."""
        return self.attn_scores_soft_cap if self.attn_scores_soft_cap > 0 else None

    @property
    def scale(self) -> float:
        """What q·k is multiplied by: 1/attn_scale, or d_head^(−1/2)."""
        if not self.use_attn_scale:
            return 1.0
        return self.d_head**-0.5 if self.attn_scale == -1 else 1 / self.attn_scale

    def _check_layer(self, layer: int) -> None:
        """Raise for a layer that is not there."""
        if whole("layer", layer, error=ConfigError) not in range(self.n_layers):
            raise ConfigError(f"layer {layer} does not exist; this model has layers 0 to {self.n_layers - 1}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HookedTransformerConfig):
            return NotImplemented
        return all(self.__dict__[name] == other.__dict__[name] for name in _SETTINGS)

    def computes_like(self, other: Self) -> bool:
        """Whether two configs make the same numbers, wherever they run; see `differing_settings` for where not."""
        return not differing_settings(self.to_dict(), other.to_dict())

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        shown = (f"{n}={self.__dict__[n]!r}" for n in _SETTINGS if n in _POSITIONAL or self.__dict__[n] != _DEFAULTS[n])
        return f"{type(self).__name__}({', '.join(shown)})"

    def to_dict(self) -> dict[str, Any]:
        """Every setting in its nested form, JSON-able (flags read from it are left out).

        Returns:
            What ``from_dict`` turns into an equal config.
        """
        return {name: _plain(self.__dict__[name]) for name in _SETTINGS}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Self:
        """Build from ``to_dict``'s form; TransformerLens flags are accepted as in the constructor.

        Args:
            config_dict: Settings by name.

        Raises:
            ConfigError: A key is unknown or a value is wrong.
        """
        settings = dict(instance("config_dict", config_dict, Mapping, "what to_dict gave", error=ConfigError))
        rope, qk_norm = settings.get("rope"), settings.get("qk_norm")
        if isinstance(rope, Mapping):
            settings["rope"] = _rope_from_dict(rope)
        if isinstance(qk_norm, Mapping):
            settings["qk_norm"] = QKNormConfig.from_dict(qk_norm)
        missing = [name for name in ("d_model", "d_head", "n_layers", "n_ctx") if name not in settings]
        if missing:
            raise ConfigError(f"{', '.join(missing)} must be given")
        return cls(**settings)


def _parameters(*functions: Any) -> dict[str, Any]:
    """Names and defaults of the parameters of some functions, the first one's first."""
    found: dict[str, Any] = {}
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                found.setdefault(name, parameter.default)
    return found


_PARENT_DEFAULTS = _parameters(TransformerBridgeConfig.__init__, TransformerLensConfig.__init__)
_PARENT = tuple(name for name in _PARENT_DEFAULTS if name not in FLAGS)
_OWN_DEFAULTS = _parameters(HookedTransformerConfig.__init__)
_DEFAULTS = {**_PARENT_DEFAULTS, **_OWN_DEFAULTS, "provenance": {}}
_DEFAULTS = {name: value for name, value in _DEFAULTS.items() if name not in FLAGS}
_DEFAULTS["block_norms"] = "pre"
_SETTINGS = tuple(_DEFAULTS)
_POSITIONAL = ("d_model", "d_head", "n_layers", "n_ctx", "n_heads", "d_vocab")


def _unknown(name: str) -> NoReturn:
    """Raise for a name that is neither a setting nor a flag."""
    near = difflib.get_close_matches(name, [*_SETTINGS, *FLAGS], n=3)
    hint = said_elsewhere(name) or (f"; did you mean {', '.join(near)}?" if near else "")
    raise ConfigError(f"{name!r} is not a setting of HookedTransformerConfig{hint}")


def _plain(value: Any) -> Any:
    """A JSON-able form of one setting."""
    if isinstance(value, (RopeConfig, QKNormConfig)):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value


def _rope_from_dict(rope: Mapping[str, Any]) -> RopeConfig | dict[str, RopeConfig | None]:
    """A schedule, or one for each layer type, from its JSON form."""
    if not rope or not set(rope) <= set(LAYER_TYPES):
        return RopeConfig.from_dict(rope)
    return {name: RopeConfig.from_dict(each) if isinstance(each, Mapping) else each for name, each in rope.items()}


def _normalise(settings: dict[str, Any]) -> None:
    """Bring settings into their one stored form, in place."""
    for name in ("layer_types", "nope_layers", "alibi_slopes"):
        if settings[name] is not None:
            settings[name] = tuple(settings[name])
    if settings["layer_types"] is None and settings["window_size"] is not None:
        settings["layer_types"] = ("sliding_attention",) * settings["n_layers"]
    if isinstance(settings["rope"], Mapping):
        settings["rope"] = LayerRopes(settings["rope"])
    settings["provenance"] = dict(settings["provenance"] or {})
    settings["dtype"] = computing_dtype(settings["dtype"])
    if settings["device"] is not None:
        settings["device"] = device_name(settings["device"])
    if settings["seed"] is not None:
        settings["seed"] = whole("seed", settings["seed"], at_least=-(2**63), at_most=2**63 - 1, error=ConfigError)
