"""RopeConfig: one rotary schedule as a frozen, validated value.

Field names and their defaults are transformers' (``modeling_rope_utils.py``, 5.23.0); ``rotary_dim``,
``interleaved``, ``precision`` and ``learnable`` are ours. The formulas stand in ``hooks.functional.rope``.
"""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from hooks.checks import instance, shown
from hooks.config.rope_spellings import LayerSettings, Reading, rope_readings
from hooks.errors import ConfigError

RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]

_EVERY_TYPE = frozenset(
    {
        "rope_type",
        "rope_theta",
        "max_position_embeddings",
        "partial_rotary_factor",
        "rotary_dim",
        "interleaved",
        "precision",
        "learnable",
    }
)
_LENGTH = "original_max_position_embeddings"
_REQUIRED: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "max_position_embeddings"}),
    "yarn": frozenset({_LENGTH}),
    "longrope": frozenset({_LENGTH, "short_factor", "long_factor"}),
    "llama3": frozenset({_LENGTH, "factor", "low_freq_factor", "high_freq_factor"}),
    "proportional": frozenset(),
}
_OPTIONAL: dict[str, frozenset[str]] = {
    "yarn": frozenset({"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"}),
    "longrope": frozenset({"factor", "attention_factor"}),
    "proportional": frozenset({"factor"}),
}
_USED = {name: _EVERY_TYPE | fields | _OPTIONAL.get(name, frozenset()) for name, fields in _REQUIRED.items()}
_MAKE_ATTENTION_FACTOR = ("factor", "mscale", "mscale_all_dim", _LENGTH, "max_position_embeddings")
LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})

# field: (test, what the error says is allowed)
_RANGES = {
    "rope_theta": (lambda x: x > 1, "a number above 1"),
    "factor": (lambda x: x >= 1, "a number of at least 1"),
    "original_max_position_embeddings": (lambda x: x >= 2 and x == int(x), "a whole number of at least 2"),
    "max_position_embeddings": (lambda x: x >= 1 and x == int(x), "a whole number of at least 1"),
    "low_freq_factor": (lambda x: x > 0, "a number above 0"),
    "high_freq_factor": (lambda x: x > 0, "a number above 0"),
    "beta_fast": (lambda x: x > 0, "a number above 0"),
    "beta_slow": (lambda x: x > 0, "a number above 0"),
    "attention_factor": (lambda x: x > 0, "a number above 0"),
    "mscale": (lambda x: x >= 0, "a number of at least 0"),
    "mscale_all_dim": (lambda x: x >= 0, "a number of at least 0"),
    "partial_rotary_factor": (lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
    "rotary_dim": (lambda x: x >= 2 and x % 2 == 0, "an even number of at least 2"),
}


@dataclass(frozen=True, repr=False)
class RopeConfig:
    """One rotary schedule; ``None`` means unset, which ``inherit`` fills from the model's own schedule.

    Args:
        rope_type: The schedule; it decides which of the other fields may be set.
        rope_theta: The base θ of f_i = θ^(−2i/r).
        factor: How far the schedule stretches the trained length (s).
        original_max_position_embeddings: The length trained before stretching (L0).
        max_position_embeddings: The length the model is made for (Lmax); every type may carry it.
        low_freq_factor: llama3: wavelengths above L0/low_freq_factor are divided by ``factor``.
        high_freq_factor: llama3: wavelengths below L0/high_freq_factor stay as they are.
        beta_fast: yarn: rotations over L0 above which a frequency stays as it is (32 when unset).
        beta_slow: yarn: rotations over L0 below which a frequency is divided by ``factor`` (1 when unset).
        attention_factor: yarn, longrope: multiplies cos and sin; computed from ``factor`` when unset.
        mscale: yarn: see ``hooks.functional.rope.attention_factor``; read only together with ``mscale_all_dim``.
        mscale_all_dim: yarn: its denominator.
        truncate: yarn: round the two bounds of the ramp outwards to whole pairs (True when unset).
        short_factor: longrope: one divisor per pair up to L0.
        long_factor: longrope: one divisor per pair beyond L0.
        partial_rotary_factor: Share of d_head that rotates; the width is ``int(d_head * share)``.
        rotary_dim: The number of features that rotate, instead of a share.
        interleaved: Rotate features (2i, 2i+1) together instead of (i, i + r/2) (False when unset).
        precision: "float32" copies transformers' order of operations bit for bit (the meaning of unset);
            "float64" gives exact angles where float32 angles are already wrong.
        learnable: inv_freq is a parameter (False when unset).

    Raises:
        ConfigError: Naming the field, its value and what is allowed.
    """

    rope_type: RopeType = "default"
    rope_theta: float | None = None
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    partial_rotary_factor: float | None = None
    rotary_dim: int | None = None
    interleaved: bool | None = None
    precision: Literal["float32", "float64"] | None = None
    learnable: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rope_type, str) or self.rope_type not in _REQUIRED:
            raise ConfigError(
                f"rope_type={shown(self.rope_type)} is unknown; allowed are {', '.join(sorted(_REQUIRED))}"
            )
        for name, value in self._set_fields().items():
            if name not in _USED[self.rope_type]:
                raise ConfigError(
                    f"{name}={shown(value)} is not used by rope_type={self.rope_type!r}, which "
                    f"reads {', '.join(sorted(_USED[self.rope_type]))}; leave it out or change rope_type"
                )
            self._check_value(name, value)
        self._check_pairs()

    def _set_fields(self) -> dict[str, Any]:
        """The fields that are not None, in order."""
        fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: value for name, value in fields if value is not None}

    def _check_value(self, name: str, value: Any) -> None:
        """Raise unless one field lies in its range; freeze lists into tuples."""
        if name in _RANGES:
            allowed, description = _RANGES[name]
            if not _is_number(value) or not allowed(value):
                raise ConfigError(f"{name}={shown(value)} must be {description}")
        elif name in ("short_factor", "long_factor"):
            if not isinstance(value, (list, tuple)) or not value or not all(_is_number(x) and x > 0 for x in value):
                raise ConfigError(f"{name}={shown(value)} must be a list of numbers above 0, one for each rotated pair")
            object.__setattr__(self, name, tuple(value))
        elif name in ("truncate", "interleaved", "learnable") and not isinstance(value, bool):
            raise ConfigError(f"{name}={shown(value)} must be True or False")
        elif name == "precision" and value not in ("float32", "float64"):
            raise ConfigError(f"precision={shown(value)} must be 'float32' or 'float64'")

    def _check_pairs(self) -> None:
        """Raise for fields that are right alone and wrong together."""
        if self.rotary_dim is not None and self.partial_rotary_factor is not None:
            raise ConfigError(
                f"rotary_dim={self.rotary_dim} and partial_rotary_factor={self.partial_rotary_factor} "
                "both give the rotated width; set one of them"
            )
        if self.rope_type == "proportional" and self.rotary_dim is not None:
            raise ConfigError(
                f"rotary_dim={self.rotary_dim} is not used by rope_type='proportional', whose "
                "frequencies span d_head; set partial_rotary_factor instead"
            )
        if self.learnable and self.rope_type in LENGTH_DEPENDENT:
            raise ConfigError(
                f"learnable=True and rope_type={self.rope_type!r} contradict each other: one "
                "schedule for all lengths against one for each; choose another rope_type"
            )
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            below, above = getattr(self, low), getattr(self, high)
            if below is not None and above is not None and not below < above:
                raise ConfigError(f"{low}={below} must be below {high}={above}")
        if self.short_factor is not None and self.long_factor is not None:
            short, long = len(self.short_factor), len(self.long_factor)
            if short != long:
                raise ConfigError(f"short_factor has {short} values and long_factor {long}; both need one per pair")

    def width(self, d_head: int) -> int:
        """Number of features that rotate: rotary_dim, or int(d_head · partial_rotary_factor).

        Args:
            d_head: Size of one head.

        Returns:
            The width r; ``proportional`` always spans the head (its last pairs have frequency 0).
        """
        if self.rope_type == "proportional":
            return d_head
        if self.rotary_dim is not None:
            return self.rotary_dim
        return int(d_head * (1.0 if self.partial_rotary_factor is None else self.partial_rotary_factor))

    def stretch(self) -> float | None:
        """The factor s: as set, or else max_position_embeddings / original_max_position_embeddings."""
        if self.factor is not None:
            return self.factor
        if self.max_position_embeddings is None or self.original_max_position_embeddings is None:
            return None
        return self.max_position_embeddings / self.original_max_position_embeddings

    def check_complete(self, d_head: int) -> None:
        """Raise unless everything the schedule needs is there and fits heads of this size.

        Args:
            d_head: Size of one head.

        Raises:
            ConfigError: A field is missing, or the rotated width is odd, below 2 or above d_head.
        """
        needed = {"rope_theta"} | _REQUIRED[self.rope_type]
        missing = [f.name for f in dataclasses.fields(self) if f.name in needed and getattr(self, f.name) is None]
        # longrope reads the stretch for its attention factor only.
        stretches = self.rope_type == "yarn" or (self.rope_type == "longrope" and self.attention_factor is None)
        if stretches and self.stretch() is None:
            missing.append("factor (or max_position_embeddings)")
        if missing:
            raise ConfigError(f"rope_type={self.rope_type!r} needs {', '.join(missing)}; set it on the RopeConfig")
        self._check_width(d_head)

    def _check_width(self, d_head: int) -> None:
        """Raise unless the rotated width is even and within the head."""
        width = self.width(d_head)
        least = 4 if self.rope_type == "dynamic" else 2  # r/(r − 2) stands in its exponent
        if width % 2 or not least <= width <= d_head:
            raise ConfigError(
                f"rotary_dim={width} (d_head={d_head}, partial_rotary_factor={self.partial_rotary_factor}) "
                f"must be even, at least {least} for rope_type={self.rope_type!r} and at most d_head"
            )
        if self.rope_type == "proportional" and self.rotated_pairs(d_head) < 1:
            raise ConfigError(f"partial_rotary_factor={self.partial_rotary_factor} rotates no pair of d_head={d_head}")
        for name in ("short_factor", "long_factor"):
            values = getattr(self, name)
            if values is not None and len(values) != width // 2:
                raise ConfigError(
                    f"{name} has {len(values)} values; rotary_dim={width} needs {width // 2}, one per pair"
                )

    def rotated_pairs(self, d_head: int) -> int:
        """Number of pairs whose frequency is not zero by construction."""
        if self.rope_type != "proportional":
            return self.width(d_head) // 2
        share = 1.0 if self.partial_rotary_factor is None else self.partial_rotary_factor
        return int(share * d_head // 2)

    def inherit(self, own: "RopeConfig", *, n_ctx: int | None = None) -> "RopeConfig":
        """Fill unset fields that this schedule uses from the model's own one.

        Args:
            own: The schedule the model has.
            n_ctx: The trained length, for a model whose own schedule does not name one.

        Returns:
            A schedule in which ``original_max_position_embeddings`` falls back on the own
            ``max_position_embeddings`` and then, as ``max_position_embeddings`` does, on ``n_ctx``.
        """
        trained = own.max_position_embeddings or n_ctx
        offered = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)}
        offered["max_position_embeddings"] = trained
        offered["original_max_position_embeddings"] = own.original_max_position_embeddings or trained
        if self.rotary_dim is not None or self.partial_rotary_factor is not None:
            offered["rotary_dim"] = offered["partial_rotary_factor"] = None
        if own.rope_type != self.rope_type:
            # How one schedule stretches says nothing about another; what it stretches from does.
            for name in ("factor", "attention_factor"):
                offered[name] = None
        if any(getattr(self, name) not in (None, getattr(own, name)) for name in _MAKE_ATTENTION_FACTOR):
            offered["attention_factor"] = None  # it was computed from what is another value now
        filled = {
            name: value
            for name, value in offered.items()
            if getattr(self, name) is None and name in _USED[self.rope_type]
        }
        return dataclasses.replace(self, **filled)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "RopeConfig | dict[str, RopeConfig | None] | None":
        """Read the rotary settings of a raw config.json, in every spelling that such files use.

        Args:
            config: The parsed file (of the text model, where there are several).

        Returns:
            One schedule; or one (or None) for each layer type, where they differ; or None, where the file
            says that positions are not rotary.

        Raises:
            ConfigError: A setting is missing, unknown, contradictory or cannot be expressed.
        """
        readings = [
            _built(cls, reading)
            for reading in rope_readings(instance("config", config, Mapping, "a parsed config.json", error=ConfigError))
        ]
        if len(readings) == 2 and readings[0] != readings[1]:
            raise ConfigError(
                f"rope_scaling says {readings[0]!r} and rope_parameters {readings[1]!r}; remove one of them"
            )
        return readings[0] if readings else None

    def to_dict(self) -> dict[str, Any]:
        """The set fields, JSON-able; ``from_dict`` gives back an equal value."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._set_fields().items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Build from ``to_dict``'s form.

        Raises:
            ConfigError: A key is not a field.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in instance(
            "settings", settings, Mapping, "a mapping of fields, as to_dict gives it", error=ConfigError
        ):
            if name not in known:
                raise ConfigError(f"{name!r} is not a field of {cls.__name__}; its fields are {', '.join(known)}")
        return cls(**settings)

    def __repr__(self) -> str:
        return f"RopeConfig({', '.join(f'{name}={value!r}' for name, value in self._set_fields().items())})"


def _built(schedule: type[RopeConfig], reading: Reading) -> "RopeConfig | dict[str, RopeConfig | None]":
    """The schedule, or one for each layer type, that a reading describes."""
    if isinstance(reading, LayerSettings):
        return {name: None if fields is None else schedule(**fields) for name, fields in reading.items()}
    return schedule(**reading)


def _is_number(value: Any) -> bool:
    """Whether a value is a finite int or float (and not a bool)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max
