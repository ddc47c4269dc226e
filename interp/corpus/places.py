"""What a corpus keeps by distance and by position: sums in the bins of the figures, which are those of every text."""

import numpy as np

from interp.analyses.position.received import PARTS, queries_seeing, received_by_position
from interp.analyses.position.schema import LOSS_BY_POSITION, POSITIONAL_BIAS, RECEIVED_BY_POSITION
from interp.common.binning import bin_starts
from interp.common.schema import Variable
from interp.corpus.heads import deviation
from interp.corpus.kept import Field, Grid, Kept, Measured, Statistic, as_weighted, extreme, ratio, weighted
from interp.tensors.capture_data import CaptureData

_PER_OCTAVE, _STRETCHES = 4, 64
_HEAD = ("layer", "head")
_BIN = (*_HEAD, "distance_bin")
_STRETCH = (*_HEAD, "position_bin")


def grid_of(n_tokens: int) -> Grid:
    """The bins of distances and the stretches of positions of texts of at most so many tokens."""
    stretches = np.unique(np.linspace(0, n_tokens, min(_STRETCHES, n_tokens) + 1).astype(int))[:-1]
    return Grid(n_tokens, bin_starts(np.arange(n_tokens), _PER_OCTAVE), stretches)


def _bias() -> Kept:
    fields = {
        "count": Field(("layer", "distance_bin")),
        **{name: Field(_BIN) for name in ("attention", "attention_value", "score", "score_square")},
        "score_min": Field(_BIN, "min"),
        "score_max": Field(_BIN, "max"),
    }

    def said(name: str) -> Variable:
        found = POSITIONAL_BIAS[name]
        dims = tuple("distance_bin" if dim == "distance" else dim for dim in found.dims)
        texts = (found.description, found.formula)
        text, formula = (t.replace("at this distance", "in this bin of distances") for t in texts)
        return found._replace(dims=dims, description=text, formula=formula)

    def share(attention: np.ndarray, count: np.ndarray) -> np.ndarray:
        return np.where(count > 0, ratio(attention, attention.sum(-1, keepdims=True)), np.nan)

    r2_fields, r2 = weighted(
        "positional_r2",
        POSITIONAL_BIAS["positional_r2"]._replace(
            description=f"{POSITIONAL_BIAS['positional_r2'].description}; mean over texts of the share in each"
        ),
    )
    statistics = {
        "attention_mean": Statistic(said("attention_mean"), ("attention", "count"), ratio),
        "attention_share": Statistic(said("attention_share"), ("attention", "count"), share),
        "attention_value_mean": Statistic(said("attention_value_mean"), ("attention_value", "count"), ratio),
        "attention_value_share": Statistic(said("attention_value_share"), ("attention_value", "count"), share),
        "score_mean": Statistic(said("score_mean"), ("score", "count"), ratio),
        "score_std": Statistic(said("score_std"), ("score", "score_square", "count"), deviation),
        "score_min": extreme(said("score_min"), "score_min"),
        "score_max": extreme(said("score_max"), "score_max"),
        "count": Statistic(said("count"), ("count",), lambda count: count, bootstrapped=False),
        "positional_r2": r2,
    }
    what = "scores and attention of each head against distance, in bins"
    return Kept({**fields, **r2_fields}, statistics, _measure_bias, what)


def _measure_bias(cap: CaptureData, grid: Grid) -> Measured:
    """Sums over the pairs of each bin of distances; a text without such a pair adds nothing."""
    stats = cap.statistics()
    stats = stats.reindex(distance=np.arange(grid.n_tokens))
    count = np.nan_to_num(stats["count"].transpose("layer", "distance").values.astype(np.float64))
    weight, seen = count[:, None], count[:, None] > 0

    def values(name: str, missing: float = 0.0) -> np.ndarray:
        found = stats[name].transpose("layer", "head", "distance").values.astype(np.float64)
        return np.where(seen & np.isfinite(found), found, missing)

    def sums(x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(x, grid.distances, axis=-1)

    mean = values("score_mean")
    r2 = stats["positional_r2"].transpose("layer", "head").values.astype(np.float64)
    return {
        "count": sums(count),
        "attention": sums(values("attention")),
        "attention_value": sums(values("attention_value")),
        "score": sums(mean * weight),
        "score_square": sums(values("score_m2") + mean**2 * weight),
        "score_min": np.minimum.reduceat(values("score_min", np.inf), grid.distances, axis=-1),
        "score_max": np.maximum.reduceat(values("score_max", -np.inf), grid.distances, axis=-1),
        **as_weighted("positional_r2", r2, np.ones(r2.shape)),
    }


def _received() -> Kept:
    fields = {
        "keys": Field(("position_bin",)),
        "received": Field(_STRETCH),
        "received_value": Field(_STRETCH),
        "part": Field((*_HEAD, "part")),
        "part_value": Field((*_HEAD, "part")),
        "uniform": Field(("layer", "part")),
    }

    def share(part: np.ndarray) -> np.ndarray:
        return ratio(part, part.sum(-1, keepdims=True))

    said = RECEIVED_BY_POSITION
    statistics = {
        "received_mean": Statistic(said["received_mean"], ("received", "keys"), ratio),
        "received_value_mean": Statistic(said["received_value_mean"], ("received_value", "keys"), ratio),
        "received_share": Statistic(said["received_share"], ("part",), share),
        "received_value_share": Statistic(said["received_value_share"], ("part_value",), share),
        "uniform_share": Statistic(said["uniform_share"], ("uniform",), share, bootstrapped=False),
    }
    return Kept(
        fields, statistics, _measure_received, "attention received by position, beside that of uniform attention"
    )


def _measure_received(cap: CaptureData, grid: Grid) -> Measured:
    """Attention per query that sees the key, summed over each stretch of keys; begin, middle and end of the text."""
    n, stats, found = len(cap.positions), cap.statistics(), received_by_position(cap)
    seen = np.stack([queries_seeing(cap.spec(layer), n) for layer in cap.layers])[:, None]

    def sums(x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, grid.n_tokens - n)]), grid.stretches, axis=-1)

    out = {"keys": sums(np.ones(n)), "uniform": found["uniform_share"].transpose("layer", "part").values * n}
    for name, part in (("received", "part"), ("received_value", "part_value")):
        values = stats[name].transpose("layer", "head", "key").values.astype(np.float64)
        out[name] = sums(values / seen)
        share = found[f"{name}_share"].transpose("layer", "head", "part").values
        out[part] = np.nan_to_num(share) * values.sum(-1, keepdims=True)
    return out


def _loss() -> Kept:
    fields, mean = weighted("loss_mean", LOSS_BY_POSITION["loss_mean"])
    return Kept(fields, {"loss_mean": mean}, _measure_loss, "loss of the next token by position")


def _measure_loss(cap: CaptureData, grid: Grid) -> Measured:
    """Losses summed over the predicted tokens of each stretch of positions."""
    losses = np.zeros(grid.n_tokens)
    there = np.zeros(grid.n_tokens)
    losses[1 : len(cap.positions)] = cap.loss.double().numpy()
    there[1 : len(cap.positions)] = 1
    total, weight = (np.add.reduceat(x, grid.stretches) for x in (losses, there))
    return {"loss_mean_total": total, "loss_mean_weight": weight}


BIAS, RECEIVED, LOSS = _bias(), _received(), _loss()
PART_NAMES = PARTS
