"""The positions of the queries and keys of one call of the attention function, whoever runs the model.

Under the model's own ``generate`` a query's index among the keys is not its position: a sliding cache has dropped the
first keys, and padding on the left counts for nothing. What is known: the index of the first key in the whole text,
which keys are padding, and, where the model hands them on, the positions of the queries.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hooks.attached.masks import MaskRules
from hooks.errors import AttachError


def true_positions(
    rules: MaskRules, n_keys: int, n_queries: int, position_ids: Any, device: torch.device
) -> tuple[Int[Tensor, "batch query"], Int[Tensor, "batch key"]]:
    """Positions of queries and keys in tokens.

    Args:
        rules: what the mask says.
        n_keys: how many keys there are, those of a cache included.
        n_queries: how many queries.
        position_ids: positions of the queries, [batch query], where the model hands them on.
        device: where the result goes.

    Raises:
        AttachError: the positions of the queries do not follow from where they stand among the keys, so that those of
            keys in a cache are not known.
    """
    if rules.key_positions is None:
        keys = rules.first_key + torch.arange(n_keys, device=device)[None]
    else:
        keys = rules.key_positions.to(device)
    rows = slice(rules.query_start, rules.query_start + n_queries)
    queries = keys[:, rows]
    if not isinstance(position_ids, Tensor) or position_ids.ndim != 2 or position_ids.shape[1] != n_queries:
        return queries, keys
    given = position_ids.to(device)
    if n_keys == n_queries:
        return given, given
    # Positions may start elsewhere than the count does: by as much for every token of a row.
    real = torch.ones_like(queries) if rules.key_mask is None else rules.key_mask[:, rows].to(device)
    apart = (given - queries).expand(max(len(given), len(queries)), -1)
    shift = apart.masked_fill(real == 0, torch.iinfo(apart.dtype).min).amax(-1, keepdim=True)
    shift = shift.masked_fill(~(real != 0).any(-1, keepdim=True), 0)
    if bool(((apart != shift) & (real != 0)).any()):
        raise AttachError(
            "the positions of keys in this cache cannot be told: position_ids have gaps that the cache does not show; "
            "run the whole text at once (use_cache=False), or without hooks on scores and patterns"
        )
    return given, keys + shift
