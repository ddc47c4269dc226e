"""Interventions, ready to hook: on scores, on what heads give, on the residual stream.

Recipes import errors, checks and each other.
"""

from hooks.recipes.heads import ablate_heads, patch_heads
from hooks.recipes.residual import patch_residual
from hooks.recipes.scores import (
    boost_keys,
    cap_scores,
    distance_temperature,
    keep_top_k,
    knock_out,
    limit_distance,
    remove_sink,
)

__all__ = [
    "ablate_heads",
    "boost_keys",
    "cap_scores",
    "distance_temperature",
    "keep_top_k",
    "knock_out",
    "limit_distance",
    "patch_heads",
    "patch_residual",
    "remove_sink",
]
