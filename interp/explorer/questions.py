"""Questions to a capture and their answers: the one core behind the server, the widget and Python.

The same question gives the same arrays wherever it is asked:

    >>> Explorer(cap).ask({"kind": "tile", "layer": 5, "head": 2, "scale": 8, "row": 0, "column": 0}).arrays["mean"]
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hooks.errors import InputError, StageError
from interp.analyses.counterfactual.variants import VARIANTS, step_variant
from interp.analyses.heads.schema import SCORES
from interp.analyses.heads.summary import head_summary
from interp.common.words import KIND_NAME, visible_text
from interp.explorer.answers import Answer
from interp.explorer.asking import TILE, Picture, Question, Window, read_question, top_scale
from interp.explorer.atlas import Atlas, held_effects, held_values, rows_of
from interp.tensors.capture_data import CaptureData

_MOST_FOUND = 500
_BINS = 48
_LONGEST_TOKEN = 40


class Explorer:
    """What a capture answers; several threads may ask at once.

    Args:
        cap: the capture. Its statistics are measured now where it lacks them, and kept beside it where it is on disk;
            no question writes anything.
        source: the lines of Python that make this capture, for who copies a view.

    Raises:
        StageError: a capture without layers.
        InputError: fewer than two tokens.
    """

    def __init__(self, cap: CaptureData, source: str = "") -> None:
        cap.statistics()
        self.cap, self.source, self.atlas = cap, source, Atlas(cap)
        self.summary = head_summary(cap)
        folded = [token.casefold() for token in cap.str_tokens]  # each by itself, for folding may change its length
        self._text, self._ends = "".join(folded), np.cumsum([len(token) for token in folded], dtype=np.int64)

    def ask(self, asked: Mapping[str, Any]) -> Answer:
        """Answer one question.

        Args:
            asked: ``{"kind": …}`` and what this kind reads, see `interp.explorer.asking.KINDS`.

        Returns:
            Arrays by name, and words.

        Raises:
            InputError: a question that is none, or out of bounds.
            StageError, PositionError, ConfigError: of something that this capture does not hold.
            CancelledError: somebody cancelled the work meanwhile.
        """
        question = read_question(asked, self.atlas.n)
        answer: Callable[[Question], Answer] = getattr(self, f"_{question.kind}")
        return answer(question)

    def _overview(self, _: Question) -> Answer:
        """What the page has to know before it asks for anything else."""
        cap = self.cap
        layers = [
            {
                "layer": layer,
                "kind": KIND_NAME[cap.cfg.layer_type(layer)],
                "window": cap.spec(layer).window,
                "causal": cap.spec(layer).causal,
                "stages": [stage for stage in cap.stages(layer) if stage != "final"],
                "steps": [name for name in VARIANTS[1:] if step_variant(cap, layer, name)[0] is not None],
                "rope": _schedule(cap, layer),
                "values": held_values(cap, layer),
                "effects": held_effects(cap, layer),
            }
            for layer in cap.layers
        ]
        metrics = [
            {
                "name": str(name),
                "label": (SCORES[str(name)].label or str(name)).replace("_", " "),
                "units": SCORES[str(name)].units,
                "about": SCORES[str(name)].description,
            }
            for name, values in self.summary.data_vars.items()
            if np.isfinite(values).any()
        ]
        first = np.nan_to_num(self.summary[metrics[0]["name"]].values, nan=-1.0) if metrics else np.zeros((1, 1))
        start = np.unravel_index(int(first.argmax()), first.shape)
        said = {
            "model": visible_text(cap.model_id, 80),
            "n": self.atlas.n,
            "heads": cap.cfg.n_heads,
            "kv_heads": cap.cfg.n_kv_heads,
            "layers": layers,
            "metrics": metrics,
            "tile": TILE,
            "top_scale": top_scale(self.atlas.n),
            "map_scale": self.atlas.map_scale,
            "start": [int(cap.layers[start[0]]), int(start[1])],
            "has_text": len(cap.str_tokens) == self.atlas.n,
            "source": self.source,
            "gradient_of": visible_text(cap.gradients.metric, 80) if cap.gradients is not None else "",
        }
        return Answer(said=said)

    def _progress(self, _: Question) -> Answer:
        """The pieces of work in progress."""
        return Answer(said={"work": self.atlas.work.progress()})

    def _cancel(self, _: Question) -> Answer:
        """Stop them."""
        return Answer(said={"cancelled": self.atlas.work.cancel()})

    def _tokens(self, question: Question) -> Answer:
        """Tokens as a page may show them, and their positions."""
        start, stop = question.span
        strings = [visible_text(token, _LONGEST_TOKEN) for token in self.cap.str_tokens[start:stop]]
        return Answer({"position": self.cap.labels[start:stop].int().numpy()}, {"tokens": strings})

    def _find(self, question: Question) -> Answer:
        """Runs of tokens that hold a text, whatever its case; the first of many."""
        wanted, runs, at = question.text.casefold(), [], -1
        while len(runs) < _MOST_FOUND and (at := self._text.find(wanted, at + 1)) >= 0:
            runs.append(np.searchsorted(self._ends, [at, at + len(wanted) - 1], side="right"))
        found = np.array(runs, dtype=np.int32).reshape(-1, 2)
        return Answer({"first": found[:, 0], "last": found[:, 1]}, {"more": len(runs) == _MOST_FOUND})

    def _grid(self, question: Question) -> Answer:
        """One number for each head, [layer, head]."""
        if question.text not in self.summary.data_vars:
            raise InputError(
                f"no metric {visible_text(question.text)!r}: {', '.join(map(str, self.summary.data_vars))}"
            )
        return Answer({"values": self.summary[question.text].transpose("layer", "head").values.astype(np.float32)})

    def _backdrop(self, question: Question) -> Answer:
        """The small pooled map that the statistics hold, of the run: what is shown until tiles come."""
        picture = self._picture(question)
        if picture.view != "pattern":
            raise InputError("the statistics hold a small map of the pattern alone: view='pattern'")
        held = self.cap.statistics([picture.layer]).sel(layer=picture.layer, head=picture.head)
        return Answer({name: held[f"map_{name}"].values.astype(np.float32) for name in ("mean", "max")})

    def _tile(self, question: Question) -> Answer:
        """Mean and extreme of the cells of each pixel of a tile."""
        picture, window = self._asked(question)
        found = self.atlas.tile(picture, window)
        return Answer({"mean": found.means(), "max": found.peaks()})

    def _window(self, question: Question) -> Answer:
        """The same of any window, with the visible cells of each pixel."""
        picture, window = self._asked(question)
        found = self.atlas.window(picture, window)
        return Answer({"mean": found.means(), "max": found.peaks(), "count": found.count.int().numpy()})

    def _in_view(self, question: Question) -> Answer:
        """Histogram of the pixels in view, and mean by distance over their cells."""
        picture, window = self._asked(question)
        found = self.atlas.window(picture, window)
        return Answer(_histogram(found.means(), picture.view) | _curve(found, window))

    def _cell(self, question: Question) -> Answer:
        """One pair: its score and attention, as asked and as the model ran, and how far it reaches."""
        picture, (query, key) = self._picture(question), question.span
        window = Window(1, (query, query + 1), (key, key + 1))
        said: dict[str, Any] = {"distance": int(self.cap.labels[query] - self.cap.labels[key])}
        views = ["score", "pattern"] + ["value"] * held_values(self.cap, picture.layer)
        effects = held_effects(self.cap, picture.layer)
        sides = {"": picture.variant} | ({"run_": None} if picture.variant is not None else {})
        arrays = {
            f"{name}{view}": self._one(Picture(picture.layer, picture.head, view, variant), window)  # type: ignore[arg-type]
            for name, variant in sides.items()
            for view in views + ["attribution"] * (effects and variant is None)
        }
        return Answer(arrays, said)

    def _row(self, question: Question) -> Answer:
        """What one query attends to: every key, as the mean of the chosen heads."""
        return Answer({"values": rows_of(self.atlas, question.heads, _shown(question), query=question.index)})

    def _column(self, question: Question) -> Answer:
        """Who attends to one key: every query, as the mean of the chosen heads."""
        return Answer({"values": rows_of(self.atlas, question.heads, _shown(question), key=question.index)})

    def _one(self, picture: Picture, window: Window) -> np.ndarray:
        """The value of a single cell; it needs no tile."""
        heads = ((picture.layer, picture.head),)
        from_row = rows_of(self.atlas, heads, picture, query=window.queries[0], key=window.keys[0])
        return from_row

    def _asked(self, question: Question) -> tuple[Picture, Window]:
        """Picture and window of a question that has both."""
        assert question.window is not None
        return self._picture(question), question.window

    def _picture(self, question: Question) -> Picture:
        """The picture of a question that has one, of a head that is there."""
        return self.atlas.checked(_shown(question))


def _shown(question: Question) -> Picture:
    """The picture of a question that has one."""
    assert question.picture is not None
    return question.picture


def _schedule(cap: CaptureData, layer: int) -> dict[str, Any] | None:
    """The numbers of a layer's own schedule, None where it does not rotate."""
    try:
        own = cap.cfg.rope_for(layer)
    except StageError:
        return None
    if own is None or "rope" not in cap.steps(layer):
        return None
    names = ("rope_type", "rope_theta", "factor", "max_position_embeddings", "original_max_position_embeddings")
    return {name: getattr(own, name) for name in names if getattr(own, name) is not None}


def _histogram(means: np.ndarray, view: str) -> dict[str, np.ndarray]:
    """How many pixels have which value: of attention by its logarithm, of scores and differences as they are."""
    values = means[np.isfinite(means)].astype(np.float64)
    if view in ("pattern", "value"):
        values = np.log10(values[values > 0])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    high = high if high > low else low + 1.0
    counts, edges = np.histogram(values, _BINS, (low, high))
    return {"counts": counts.astype(np.int32), "edges": edges}


def _curve(found: Any, window: Window) -> dict[str, np.ndarray]:
    """Mean over the visible cells of the pixels that lie equally far from the diagonal, [distance in cells]."""
    rows, columns = found.count.shape
    first = [(start // window.scale) for start in (window.queries[0], window.keys[0])]
    away = (np.arange(rows)[:, None] + first[0]) - (np.arange(columns) + first[1])
    low = int(away.min())
    size, index = int(away.max()) - low + 1, (away - low).ravel()
    total = np.bincount(index, found.total.numpy().ravel(), size)
    count = np.bincount(index, found.count.numpy().ravel(), size)
    kept = count > 0
    distance = ((np.arange(size) + low) * window.scale)[kept]
    return {"distance": distance.astype(np.int32), "curve": (total[kept] / count[kept])}
