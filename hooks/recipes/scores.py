"""Interventions on attention, ready to hook: each function returns a hook for the scores of a layer.

Every recipe edits scores, so it goes on ``hook_attn_scores_rows`` (O(n) memory at any length) or ``hook_attn_scores``
(whole matrices), and softmax renormalises after it:

| recipe | the score s of query i and key j becomes |
| --- | --- |
| `remove_sink` | −∞ where key j is among the first of the sequence |
| `limit_distance` | −∞ where their distance exceeds a limit |
| `keep_top_k` | −∞ where it is below the k-th largest score of its row |
| `knock_out` | −∞ where i is in one set of positions and j in another (attention knockout) |
| `boost_keys` | s + bias where j is in a set of positions |
| `cap_scores` | min(s, cap) |
| `distance_temperature` | s / T(distance) |

    model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.attn.hook_attn_scores_rows", recipes.remove_sink())])

Distances and positions are in tokens and follow ``position_ids`` and padding. A query left without a key attends to
nothing: its pattern and its z are zeros, in low precision too. Where a model has learned sinks, they take part in the
softmax as before. The hooks keep no state and are differentiable; without gradients they edit their tensor in place.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.checks import shown
from hooks.errors import ConfigError, InputError
from hooks.recipes.arguments import finite, index_set, on_device, whole

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint

_POINTS = ("hook_attn_scores_rows", "hook_attn_scores")
# Edits a tensor of scores, given positions that broadcast against it: [… 1 query 1] and [… 1 1 key].
Edit = Callable[[Tensor, Tensor, Tensor], object]


class ScoresHook(Protocol):
    """A hook function for ``hook_attn_scores_rows`` or ``hook_attn_scores``."""

    def __call__(
        self, scores: Float[Tensor, "batch head query key"], /, *, hook: "HookPoint"
    ) -> Float[Tensor, "batch head query key"]:
        """The edited scores."""
        ...


def remove_sink(sink_size: int = 1, *, first_position: int = 0, heads: Iterable[int] | None = None) -> ScoresHook:
    """Hide the sequence's first keys, the attention sink; the other keys share its attention in proportion.

    Queries among the first ``sink_size`` tokens are left without a key. In every layer at once this equals deleting
    those tokens, because rotations are relative, and the next token becomes the sink: to see what a sink is for, hook
    the layers after the one that forms it.

    Args:
        sink_size: how many keys, counted from ``first_position``.
        first_position: position of the sequence's first token.
        heads: query heads to edit; all when None.

    Raises:
        ConfigError: sink_size < 1, a negative position or head.
    """
    size, first = whole("sink_size", sink_size, 1), whole("first_position", first_position, 0)
    return _recipe(lambda s, i, j: _hide(s, (j >= first) & (j < first + size)), heads)


def limit_distance(max_distance: int, *, heads: Iterable[int] | None = None) -> ScoresHook:
    """Hide the keys farther than ``max_distance`` tokens from the query, on either side; the rest renormalise.

    With positions that count tokens this is a sliding window of ``max_distance + 1``. No query is left without a key.

    Args:
        max_distance: the largest distance that stays visible, in tokens; 0 leaves each query itself.
        heads: query heads to edit; all when None.

    Raises:
        ConfigError: a negative distance or head.
    """
    limit = whole("max_distance", max_distance, 0)
    return _recipe(lambda s, i, j: _hide(s, (j < i - limit) | (j > i + limit)), heads)


def keep_top_k(k: int, *, heads: Iterable[int] | None = None) -> ScoresHook:
    """Hide all but the k largest scores of each query; the rest renormalise.

    Scores that tie with the k-th are kept. A query that sees fewer than k keys keeps them all. No gradient flows
    through the choice.

    Args:
        k: how many keys each query keeps.
        heads: query heads to edit; all when None.

    Raises:
        ConfigError: k < 1 or a negative head.
    """
    k = whole("k", k, 1)

    def keep(scores: Tensor, i: Tensor, j: Tensor) -> None:
        if k < scores.shape[-1]:
            smallest_kept = scores.detach().topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
            scores.masked_fill_(scores.detach() < smallest_kept, -torch.inf)

    return _recipe(keep, heads)


def knock_out(
    queries: Iterable[int] | Int[Tensor, " n"],
    keys: Iterable[int] | Int[Tensor, " m"],
    *,
    heads: Iterable[int] | None = None,
) -> ScoresHook:
    """Forbid A → B: queries at some positions cannot see keys at others; the rest renormalise.

    A query whose every visible key is forbidden attends to nothing.

    Args:
        queries: positions A that look, such as ``range(40, 50)``.
        keys: positions B that they may not see.
        heads: query heads to edit; all when None.

    Raises:
        ConfigError: an empty set, a negative position or head.

    Source: Geva et al. 2023, Dissecting Recall of Factual Associations (arXiv:2304.14767), section 5.
    """
    looking, hidden = (on_device(index_set(*x)) for x in (("queries", queries), ("keys", keys)))

    def forbid(scores: Tensor, i: Tensor, j: Tensor) -> None:
        rows = torch.isin(i, looking(i.device))
        if _may_select(rows):
            _hide(scores, rows & torch.isin(j, hidden(j.device)))

    return _recipe(forbid, heads)


def boost_keys(
    keys: Iterable[int] | Int[Tensor, " n"], bias: float, *, heads: Iterable[int] | None = None
) -> ScoresHook:
    """Add a bias to the scores of some keys, a needle: their odds against every other key grow by exp(bias).

    A key that the query cannot see stays hidden.

    Args:
        keys: positions of the keys.
        bias: what to add to their scores; below 0 it suppresses them.
        heads: query heads to edit; all when None.

    Raises:
        ConfigError: an empty set, a negative position or head, a bias that is not finite.
    """
    chosen, bias = on_device(index_set("keys", keys)), finite("bias", bias)

    def boost(scores: Tensor, i: Tensor, j: Tensor) -> None:
        hit = torch.isin(j, chosen(j.device))
        if _may_select(hit):
            # An infinite bias would make NaN of a hidden key's −∞.
            largest = torch.finfo(scores.dtype).max
            added = torch.where(hit, min(max(bias, -largest), largest), 0.0).to(scores.dtype)
            _stay_finite(scores.add_(added))

    return _recipe(boost, heads)


def cap_scores(cap: float, *, heads: Iterable[int] | None = None) -> ScoresHook:
    """Cap scores from above, ``min(s, cap)``: no key's odds against a key at the cap or above it can exceed 1.

    Args:
        cap: the largest score that stays as it is, in units of the score that enters softmax.
        heads: query heads to edit; all when None.

    Raises:
        ConfigError: a cap that is not finite, a negative head.
    """
    cap = finite("cap", cap)
    return _recipe(lambda s, i, j: s.clamp_(max=max(cap, torch.finfo(s.dtype).min)), heads)


def distance_temperature(
    temperature: Callable[[Float[Tensor, "*batch query key"]], Float[Tensor, "*batch query key"]],
    *,
    heads: Iterable[int] | None = None,
) -> ScoresHook:
    """Divide each score by a temperature that depends on the distance of its query and key, ``s / T(|Δ|)``.

    ``distance_temperature(lambda distance: 1 + distance / 4096)`` flattens attention over far keys.

    Args:
        temperature: gives the temperatures, finite and above 0, of a tensor of distances in tokens (float32 or better,
            ≥ 0, of any shape); called once per block, and may depend on tensors that want a gradient.
        heads: query heads to edit; all when None.

    Raises:
        ConfigError: the temperature is not a function, a negative head.
        InputError: at run time, temperatures of another shape, not finite or not above 0.
    """
    if not callable(temperature):
        raise ConfigError(f"temperature is {shown(temperature)}: give a function of a tensor of distances")

    def divide(scores: Tensor, i: Tensor, j: Tensor) -> None:
        distance = (i - j).abs_().to(torch.promote_types(scores.dtype, torch.float32))
        by = temperature(distance)
        _check_temperature(by, distance)
        if not by.requires_grad:
            _stay_finite(scores.div_(by))
            return
        # The gradient of −∞ / T with respect to T is not a number.
        hidden = scores.detach() == -torch.inf
        _stay_finite(scores.masked_fill_(hidden, 0).div_(by)).masked_fill_(hidden, -torch.inf)

    return _recipe(divide, heads)


def _recipe(edit: Edit, heads: Iterable[int] | None) -> ScoresHook:
    """A hook that applies an edit to the chosen heads."""
    chosen = [] if heads is None else sorted(set(index_set("heads", heads).tolist()))
    index_on = on_device(torch.tensor(chosen))

    def recipe(scores: Tensor, /, *, hook: "HookPoint") -> Tensor:
        i, j = _where(scores, hook)
        # A tensor in a graph may be one that autograd lets nobody overwrite.
        scores = scores.clone() if scores.requires_grad else scores
        if not chosen:
            edit(scores, i, j)
            return scores
        if chosen[-1] >= scores.shape[1]:
            raise InputError(f"{hook.name} has no head {chosen[-1]}: its {scores.shape[1]} heads count from 0")
        index = index_on(scores.device)
        part = scores.index_select(1, index)
        edit(part, i, j)
        return scores.index_copy_(1, index, part)

    return recipe


def _where(scores: Tensor, hook: "HookPoint") -> tuple[Tensor, Tensor]:
    """Positions of a tensor's queries and keys, shaped to broadcast against it."""
    i, j = hook.ctx.get("query_positions"), hook.ctx.get("key_positions")
    if not str(hook.name).endswith(_POINTS) or i is None or j is None:
        raise InputError(
            f"{hook.name} does not hold scores whose positions are known: put the recipe on "
            f"{' or '.join(_POINTS)} of a model from this package"
        )
    if (i.shape[-1], j.shape[-1]) != scores.shape[-2:]:
        raise InputError(f"{hook.name} got {tuple(scores.shape)} for {i.shape[-1]} queries and {j.shape[-1]} keys")
    return i[..., None, :, None], j[..., None, None, :]


def _hide(scores: Tensor, hidden: Tensor) -> None:
    """Set scores to −∞ where a mask, which broadcasts over heads, is True."""
    if _may_select(hidden):
        # Adding a float mask is far faster than masked_fill_ with a mask broadcast over heads.
        scores.add_(
            torch.zeros(hidden.shape, dtype=scores.dtype, device=scores.device).masked_fill_(hidden, -torch.inf)
        )


def _may_select(mask: Tensor) -> bool:
    """Whether a mask has a True; True as well where the host would have to wait for a device to know."""
    return not mask.is_cpu or bool(mask.any())


def _stay_finite(scores: Tensor) -> Tensor:
    """Keep what an edit enlarged below float16's overflow, where softmax would give NaN."""
    return scores.clamp_(max=torch.finfo(scores.dtype).max) if scores.dtype == torch.float16 else scores


def _check_temperature(by: object, distance: Tensor) -> None:
    """Raise InputError unless there is one usable temperature per distance."""
    if not isinstance(by, Tensor) or by.shape != distance.shape:
        got = f"a tensor of shape {tuple(by.shape)}" if isinstance(by, Tensor) else repr(by)
        raise InputError(f"temperature returned {got}: return one temperature per distance, {tuple(distance.shape)}")
    bad = ~((by > 0) & (by < torch.inf))
    if bool(bad.any()):
        value, at = by[bad][0].item(), distance[bad][0].item()
        raise InputError(f"temperature at distance {at:g} is {value}: it must be finite and above 0")
