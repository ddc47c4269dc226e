"""Wavelengths, the bound of the base, the critical dimension, schedules: outside numbers, direct sums, transformers."""

import math

import numpy as np
import pytest
from tiny_hooked import tiny_config
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hooks import RopeConfig
from interp.analyses.weights.wavelengths import (
    critical_dimension,
    first_negative,
    frequencies_of,
    rotation_dataset,
    rotations_of,
    schedule_dataset,
)

KINDS = ("sliding_attention", "full_attention")


def base(theta, width):
    """θ^(−2i/r), from the definition."""
    return theta ** (-np.arange(0, width, 2) / width)


@pytest.mark.parametrize(
    ("theta", "width", "distance"),
    [
        (100_000, 64, 3_616),  # SmolLM2
        (10_000, 256, 2_653),  # Gemma 3's sliding layers
        (1_000_000, 256, 71_627),  # its full layers
        (500_000, 128, 18_438),  # Llama 3
        (10_000, 128, 1_707),  # Llama 2
    ],
)
def test_the_bases_of_known_models(theta, width, distance):
    assert first_negative(base(theta, width)) == distance
    assert first_negative(frequencies_of(RopeConfig(rope_theta=float(theta)), width, None)) == distance


@pytest.mark.parametrize("seed", range(6))
def test_the_first_negative_sum_is_that_of_every_distance_summed_by_itself(seed):
    generator = np.random.default_rng(seed)
    frequencies = base(generator.uniform(10, 3_000), 2 * int(generator.integers(1, 40)))
    direct = np.cos(frequencies[:, None] * np.arange(1 << 16)).sum(0)
    negative = np.flatnonzero(direct < 0)
    assert first_negative(frequencies, 1 << 16) == (int(negative[0]) if len(negative) else None)


def test_a_sum_that_never_turns_negative_has_no_distance():
    assert first_negative(np.array([0.0, 0.0, 1.0]), 1 << 14) is None


def test_critical_dimension():
    assert critical_dimension(100_000, 64, 8_192) == 40  # SmolLM2
    assert critical_dimension(1_000_000, 256, 32_768) == 160  # Gemma 3's full layers
    assert critical_dimension(10_000, 128, 4_096) == 92  # Llama 2, as its paper has it
    assert critical_dimension(2.0, 8, 1 << 30) == 8
    assert critical_dimension(10_000, 8, 2) == 0
    for theta, width, length in ((9_999.0, 64, 700), (50.0, 32, 90)):
        turning = int((2 * math.pi / base(theta, width) < length).sum())
        assert critical_dimension(theta, width, length) == 2 * turning


def test_wavelengths_are_those_of_the_layers_and_windows_count():
    ropes = {KINDS[0]: RopeConfig(rope_theta=100.0), KINDS[1]: RopeConfig(rope_theta=1e4)}
    cfg = tiny_config(n_layers=3, layer_types=(*KINDS, KINDS[0]), window_size=9, rope=ropes)
    found = rotation_dataset(rotations_of(cfg))
    assert found["rotation"].values.tolist() == list(KINDS)
    assert found["layers"].values.tolist() == ["0, 2", "1"]
    for kind, theta, span in zip(KINDS, (100.0, 1e4), (9, 4096), strict=True):
        one = found.sel(rotation=kind)
        np.testing.assert_allclose(one["wavelength"], 2 * math.pi / base(theta, 16), rtol=1e-6)
        assert int(one["span"]) == span
        assert int(one["slow_pairs"]) == (2 * math.pi / base(theta, 16) > span).sum()
        np.testing.assert_allclose(one["turns"] * one["wavelength"], span)


def test_a_model_without_rotation_has_none():
    found = rotations_of(tiny_config(rope=None))
    assert found == [] and rotation_dataset(found).sizes["rotation"] == 0
    assert schedule_dataset(found, 2.0).sizes["rotation"] == 0


def test_schedules_are_those_that_transformers_computes():
    cfg = tiny_config(n_ctx=64, d_head=64, rope=RopeConfig(rope_theta=1e4))
    found = schedule_dataset(rotations_of(cfg), 4.0).isel(rotation=0)
    more = {
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
        "llama3": {
            **{"factor": 4.0, "original_max_position_embeddings": 64},
            **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
    }
    for name, settings in more.items():
        parameters = {"rope_type": name, "rope_theta": 1e4, **settings}
        theirs = LlamaConfig(head_dim=64, max_position_embeddings=64, rope_parameters=parameters)
        frequencies, factor = ROPE_INIT_FUNCTIONS[name](theirs, "cpu", seq_len=256)
        kept = frequencies.double().numpy() / base(1e4, 64)
        one = found.sel(schedule=name)
        np.testing.assert_allclose(one["kept"], kept, rtol=1e-5)
        np.testing.assert_allclose(one["wavelength"], 2 * math.pi / frequencies.double().numpy(), rtol=1e-6)
        assert int(one["changed_pairs"]) == (kept < 0.999).sum()
        assert float(one["attention_factor"]) == pytest.approx(factor)
    np.testing.assert_allclose(found["kept"].sel(schedule="default"), 1, rtol=1e-6)


def test_a_models_own_schedule_stands_beside_the_others_and_a_narrow_or_proportional_one_lacks_some():
    llama3 = RopeConfig(
        rope_type="llama3",
        rope_theta=1e4,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=2.0,
        original_max_position_embeddings=32,
    )
    found = schedule_dataset(rotations_of(tiny_config(rope=llama3)), 8.0).isel(rotation=0)
    np.testing.assert_allclose(found["kept"].sel(schedule="own"), found["kept"].sel(schedule="llama3"))
    narrow = schedule_dataset(rotations_of(tiny_config(rope=RopeConfig(rope_theta=1e4, rotary_dim=2))), 2.0)
    assert "dynamic" not in narrow["schedule"].values
    share = RopeConfig(rope_type="proportional", rope_theta=1e4, partial_rotary_factor=0.5)
    proportional = schedule_dataset(rotations_of(tiny_config(rope=share)), 2.0)
    assert proportional["schedule"].values.tolist() == ["own"]
    np.testing.assert_allclose(proportional["kept"][0, 0, :4], 1, rtol=1e-6)
