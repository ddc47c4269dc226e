"""A Dataset drawn with plotly; computes nothing that it shows.

`show` picks the figure of any result. Every figure is drawn in light colours; `dark` exchanges them, `save` writes
PNG, SVG, PDF or a page of its own.

May import: hooks, interp.common.
"""

from interp.plots.along_text import rows_by_position
from interp.plots.audited import pair_strengths, proven_scores, schedule_changes, wavelengths
from interp.plots.causes import effect_by_head, effect_by_token, effect_map, patched
from interp.plots.counts import coverage
from interp.plots.differences import comparison, comparison_by_distance
from interp.plots.distance import attention_by_distance, attention_by_variant, attention_share_by_head
from interp.plots.export import save
from interp.plots.loss import loss_by_position
from interp.plots.maps import attention_window, head_scores, layer_head_map, pooled_map
from interp.plots.needle import needle_grid
from interp.plots.over_texts import head_intervals, spread_over_texts
from interp.plots.pairs import frequency_pairs
from interp.plots.profiles import bound_by_distance, precision_cost, received_by_position, relativity_error, sink_rate
from interp.plots.ranges import score_ranges
from interp.plots.showing import can_show, show
from interp.plots.tables import head_table, ranking
from interp.plots.theme import dark
from interp.plots.training import watched_scores

__all__ = [
    "attention_by_distance",
    "attention_by_variant",
    "attention_share_by_head",
    "attention_window",
    "bound_by_distance",
    "can_show",
    "comparison",
    "comparison_by_distance",
    "coverage",
    "dark",
    "effect_by_head",
    "effect_by_token",
    "effect_map",
    "frequency_pairs",
    "head_intervals",
    "head_scores",
    "head_table",
    "layer_head_map",
    "loss_by_position",
    "needle_grid",
    "pair_strengths",
    "patched",
    "pooled_map",
    "precision_cost",
    "proven_scores",
    "ranking",
    "received_by_position",
    "relativity_error",
    "rows_by_position",
    "save",
    "schedule_changes",
    "score_ranges",
    "show",
    "sink_rate",
    "spread_over_texts",
    "watched_scores",
    "wavelengths",
]
