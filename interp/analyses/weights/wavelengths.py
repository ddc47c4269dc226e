"""The frequencies of a model's rotations against the length it was trained on, and what other schedules change."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float

from hooks import HookedTransformerConfig, RopeConfig
from hooks.functional.rope import attention_factor, inv_freq, length_dependent
from interp.analyses.weights.schema import AUDIT_ROTATIONS, AUDIT_SCHEDULES
from interp.common.labels import labelled, result_of
from interp.common.words import number_ranges

# Base sums are looked at up to this distance; most turn negative long before.
FURTHEST = 1 << 24
_BLOCK = 1 << 10
_UNCHANGED = 0.999
# Meta's settings for Llama 3.1, where the model has none of its own.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


@dataclass(frozen=True)
class Rotation:
    """How layers of one kind rotate.

    Attributes:
        name: their layer type.
        layers: which they are.
        rope: the schedule.
        frequencies: angle per token of each pair, learned ones where they are learned.
        trained: the length trained before the schedule stretched it.
        context: the length that the model is made for.
        window: keys that a query of these layers sees; None for all.
        width: features of a head that rotate.
        d_head: features of a head.
    """

    name: str
    layers: tuple[int, ...]
    rope: RopeConfig
    frequencies: Float[np.ndarray, " pair"]
    trained: int
    context: int
    window: int | None
    width: int
    d_head: int

    @property
    def span(self) -> int:
        """How many distances these layers see."""
        return self.context if self.window is None else min(self.context, self.window)


def rotations_of(
    cfg: HookedTransformerConfig, learned: Mapping[str, Float[np.ndarray, " pair"]] | None = None
) -> list[Rotation]:
    """The distinct rotations of a model, sliding layers first.

    Args:
        cfg: the model's config.
        learned: frequencies by layer type, where they are parameters.
    """
    found: dict[str, list[int]] = {}
    for layer in range(cfg.n_layers):
        if cfg.rope_for(layer) is not None:
            found.setdefault(cfg.layer_type(layer), []).append(layer)
    rotations = []
    for name in sorted(found, reverse=True):
        layer = found[name][0]
        rope = cfg.rope_for(layer)
        assert rope is not None
        own = (learned or {}).get(name)
        frequencies = frequencies_of(rope, cfg.d_head, cfg.n_ctx) if own is None else own
        rotations.append(
            Rotation(
                name=name,
                layers=tuple(found[name]),
                rope=rope,
                frequencies=frequencies,
                trained=rope.original_max_position_embeddings or cfg.n_ctx,
                context=cfg.n_ctx,
                window=cfg.window(layer),
                width=2 * rope.rotated_pairs(cfg.d_head),
                d_head=cfg.d_head,
            )
        )
    return rotations


def frequencies_of(rope: RopeConfig, d_head: int, length: int | None) -> Float[np.ndarray, " pair"]:
    """Angle per token of each pair, for a text of this length."""
    return inv_freq(rope, d_head, length)[0].double().numpy()


def first_negative(frequencies: Float[np.ndarray, " pair"], furthest: int = FURTHEST) -> int | None:
    """The first distance Δ with ``Σ_i cos(θ_i Δ) < 0``; None if there is none below `furthest`.

    Until then a key like the query outweighs a random one on average; past it, it does not.

    Args:
        frequencies: angle per token of each pair, rad/token.
        furthest: how far to look.

    Source:
        Men et al., "Base of RoPE Bounds Context Length", arXiv 2405.14591.
    """
    # cos((m + r)θ) = cos mθ cos rθ − sin mθ sin rθ: a million distances are two products of small matrices.
    inner = np.outer(frequencies, np.arange(_BLOCK))
    cos, sin = np.cos(inner), np.sin(inner)
    rows = _BLOCK
    for start in range(0, furthest, rows * _BLOCK):
        angles = np.outer(start + _BLOCK * np.arange(rows), frequencies)
        sums = (np.cos(angles) @ cos - np.sin(angles) @ sin).ravel()
        # Those next to zero are summed once more, each from its own angle.
        for at in np.flatnonzero(sums < 1e-6):
            distance = start + int(at)
            if distance < furthest and np.cos(frequencies * distance).sum() < 0:
                return distance
    return None


def critical_dimension(theta: float, width: int, length: int) -> int:
    """Features whose pairs complete a turn within a length: ``2⌈(r/2) log_θ(L/2π)⌉``, within 0 … r.

    Args:
        theta: the base.
        width: features that rotate, r.
        length: trained length, L [tokens].

    Source:
        Liu et al., "Scaling Laws of RoPE-based Extrapolation", arXiv 2310.05209.
    """
    pairs = math.ceil(width / 2 * math.log(length / (2 * math.pi)) / math.log(theta))
    return 2 * min(max(pairs, 0), width // 2)


def rotation_dataset(rotations: Sequence[Rotation]) -> xr.Dataset:
    """Wavelengths, turns, the base's bound and the critical dimension of each rotation."""
    pairs = max((len(each.frequencies) for each in rotations), default=0)
    wavelength = _stacked([_wavelengths(each.frequencies) for each in rotations], pairs)
    span = np.asarray([each.span for each in rotations], dtype=np.int64)
    known = [each.rope.rope_theta or math.nan for each in rotations]
    found: dict[str, object] = {
        "layers": [number_ranges(each.layers) for each in rotations],
        "rope_type": [each.rope.rope_type for each in rotations],
        "rope_theta": known,
        "rotary_dim": np.asarray([each.width for each in rotations], dtype=np.int64),
        "trained_length": np.asarray([each.trained for each in rotations], dtype=np.int64),
        "context_length": np.asarray([each.context for each in rotations], dtype=np.int64),
        "span": span,
        "attention_factor": [attention_factor(each.rope) for each in rotations],
        "wavelength": wavelength,
        "turns": span[:, None] / wavelength,
        "slow_pairs": (wavelength > span[:, None]).sum(1),
        "critical_dimension": np.asarray(
            [critical_dimension(_theta(each), each.width, min(each.trained, each.span)) for each in rotations],
            dtype=np.int64,
        ),
        "first_negative": [_or_nan(first_negative(each.frequencies)) for each in rotations],
    }
    out = xr.Dataset(
        {name: (AUDIT_ROTATIONS[name].dims, values) for name, values in found.items()},
        {"rotation": _names(rotations), "pair": np.arange(pairs)},
    )
    out["rotation"].attrs = {"units": "", "description": "kind of layer"}
    return result_of("audit_rotations", labelled(out, AUDIT_ROTATIONS), "wavelength of every pair, before any text")


def schedule_dataset(rotations: Sequence[Rotation], factor: float) -> xr.Dataset:
    """What each schedule would change of a rotation, stretched by a factor, beside the plain base and its own.

    Schedules that need a number for each pair (longrope), or that span the head otherwise (proportional), are there
    where the model has them, as its own.

    Args:
        rotations: of the model.
        factor: how far the trained length is stretched.
    """
    tables = [_schedules(each, factor) for each in rotations]
    names = list(dict.fromkeys(name for table in tables for name in table))
    pairs = max((len(each.frequencies) for each in rotations), default=0)
    shape = (len(rotations), len(names))
    found = {name: np.full(shape, np.nan) for name in ("changed_pairs", "attention_factor", "first_negative")}
    wavelength, kept = np.full((*shape, pairs), np.nan), np.full((*shape, pairs), np.nan)
    for row, (rotation, table) in enumerate(zip(rotations, tables, strict=True)):
        plain = rotation.width and 1 / _theta(rotation) ** (2 * np.arange(rotation.width // 2) / _divisor(rotation))
        for name, (frequencies, stretch) in table.items():
            at = row, names.index(name)
            turning = frequencies[: rotation.width // 2]
            wavelength[at][: len(frequencies)] = _wavelengths(frequencies)
            kept[at][: len(turning)] = turning / plain
            found["changed_pairs"][at] = (turning / plain < _UNCHANGED).sum()
            found["attention_factor"][at] = stretch
            found["first_negative"][at] = _or_nan(first_negative(frequencies))
    values = {"wavelength": wavelength, "kept": kept} | found
    out = xr.Dataset(
        {name: (AUDIT_SCHEDULES[name].dims, each) for name, each in values.items()},
        {"rotation": _names(rotations), "schedule": names, "pair": np.arange(pairs)},
        {"factor": factor},
    )
    out["schedule"].attrs = {"units": "", "description": "schedule that the rotation would have"}
    out["rotation"].attrs = {"units": "", "description": "kind of layer"}
    said = labelled(out, AUDIT_SCHEDULES, factor=f"{factor:g}")
    return result_of("audit_schedules", said, f"what each schedule would change, stretched {factor:g} ×")


def _schedules(rotation: Rotation, factor: float) -> dict[str, tuple[np.ndarray, float]]:
    """Frequencies and attention factor by name."""
    own = rotation.rope
    found = {"own": (rotation.frequencies, attention_factor(own))}
    if own.rope_type == "proportional":
        return found
    shared = {"rope_theta": own.rope_theta, "rotary_dim": rotation.width, "precision": own.precision}
    trained = {"original_max_position_embeddings": rotation.trained}
    llama3 = {name: getattr(own, name) or value for name, value in _LLAMA3.items()}
    others = {
        "default": RopeConfig(**shared),
        "linear": RopeConfig(rope_type="linear", factor=factor, **shared),
        "dynamic": RopeConfig(rope_type="dynamic", factor=factor, max_position_embeddings=rotation.trained, **shared),
        "yarn": RopeConfig(rope_type="yarn", factor=factor, **trained, **shared),
        "llama3": RopeConfig(rope_type="llama3", factor=factor, **trained, **llama3, **shared),
    }
    for name, rope in others.items():
        if name == "dynamic" and rotation.width < 4:  # r/(r − 2) stands in its exponent
            continue
        length = int(rotation.trained * factor) if length_dependent(rope) else None
        found[name] = frequencies_of(rope, rotation.d_head, length), attention_factor(rope)
    return found


def _theta(rotation: Rotation) -> float:
    """The base of a complete schedule."""
    assert rotation.rope.rope_theta is not None
    return rotation.rope.rope_theta


def _divisor(rotation: Rotation) -> int:
    """What the exponents of the base are divided by: the rotated width, or the head's where a schedule spans it."""
    return rotation.d_head if rotation.rope.rope_type == "proportional" else rotation.width


def _wavelengths(frequencies: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
    """2π / θ, inf where a pair does not turn."""
    return np.divide(2 * math.pi, frequencies, out=np.full(len(frequencies), np.inf), where=frequencies != 0)


def _stacked(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Rows of different lengths as one array, NaN behind the shorter ones."""
    out = np.full((len(rows), width), np.nan)
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return out


def _names(rotations: Sequence[Rotation]) -> np.ndarray:
    """What the rotations are called, as an array of words even where there are none."""
    return np.asarray([each.name for each in rotations], dtype=np.str_)


def _or_nan(found: int | None) -> float:
    return math.nan if found is None else float(found)
