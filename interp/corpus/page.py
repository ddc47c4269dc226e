"""The report over texts: one HTML file in the style of the report on a capture, of what a corpus holds."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp import plots
from interp.analyses.heads.schema import KINDS
from interp.analyses.heads.summary import typical_heads
from interp.analyses.position.sinks import SINK_THRESHOLD
from interp.common.files import check_writable, write_text
from interp.common.words import KIND_NAME, head_name, number_ranges, visible_text
from interp.corpus.questions import CorpusData
from interp.plots import theme
from interp.plots.bands import MOST_BANDS
from interp.reporting.figures import FigureView, view
from interp.reporting.page import page_colours, page_template
from interp.reporting.page_data import as_script
from interp.reporting.sentences import Card, number
from interp.reporting.tables import Cell

_MOST_ROWS = 2000
_TOP_TEXTS = 3
_LONGEST = 120
# The scores whose intervals and spread are drawn, of those that the corpus holds.
_DRAWN = ("first_token_mass", "previous_token", "induction", "entropy")


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, what it says in words, figures, and perhaps a table."""

    key: str
    short: str
    title: str
    words: str
    measure: str
    figures: list[FigureView] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)


def corpus_report(corpus: CorpusData, path: str | Path) -> Path:
    """Write the report on a corpus; see `Corpus.report`."""
    check_writable(path)
    return write_text(path, render(corpus))


def render(corpus: CorpusData) -> str:
    """The report as HTML."""
    from plotly.offline import get_plotlyjs

    means = {name: corpus.mean(name) for name in corpus.analyses}
    texts = corpus.texts
    return page_template("corpus.html.j2").render(
        model=visible_text(corpus.plan.model.name, _LONGEST),
        cards=list(_cards(corpus, means)),
        sentences=list(_sentences(corpus, means)),
        sections=[section for make in _SECTIONS for section in make(corpus, means)],
        text_columns=["Id", "Tokens", "Loss [nats a token]", "Status", "Reason", "Opening"],
        text_rows=[_text_row(row) for row in texts.head(_MOST_ROWS).to_dict("records")],
        left_out=max(len(texts) - _MOST_ROWS, 0),
        provenance=_provenance(corpus),
        map_shades=theme.SHADES,
        map_shades_dark=[theme.DARK[colour] for colour in theme.SHADES],
        page_data=as_script({"colours": page_colours(), "template": theme.template().to_plotly_json()}),
        plotly_js=get_plotlyjs(),
    )


def _cards(corpus: CorpusData, means: dict[str, xr.Dataset]) -> Iterator[Card]:
    """The numbers at the top."""
    status, rows = corpus.texts["status"], corpus.texts
    n = len(corpus)
    yield Card(f"{n:,}", "texts measured", f"of {len(status):,} given")
    yield Card(f"{sum(rows['tokens'].tolist()):,}", "tokens read", f"at most {corpus.plan.n_tokens:,} a text")
    if corpus.loss is not None:
        yield Card(f"{corpus.loss:.3f}", "nats per token", f"perplexity {number(np.exp(corpus.loss))}")
    if "sink_rate" in means:
        found = means["sink_rate"]
        low, high = (float(found[f"sink_rate_{edge}"]) for edge in ("low", "high"))
        interval = f"95 %: {low:.1%} to {high:.1%}" if np.isfinite(low) else "of one text"
        yield Card(f"{float(found['sink_rate']):.1%}", "sink rate", interval)
    if "head_summary" in means:
        mass = means["head_summary"]["first_token_mass"]
        yield Card(f"{int((mass > SINK_THRESHOLD).sum())} of {mass.size}", "sink heads", "over all texts together")


def _sentences(corpus: CorpusData, means: dict[str, xr.Dataset]) -> Iterator[str]:
    """The findings, one sentence each, each with how sure it is."""
    failed = corpus.texts["status"].tolist().count("failed")
    if failed:
        yield f"{failed:,} of {len(corpus.texts):,} texts could not be measured; the table of texts says why."
    if "head_summary" not in means:
        return
    mean, spread = means["head_summary"], corpus.spread("head_summary")
    low, high = mean["first_token_mass_low"], mean["first_token_mass_high"]
    if bool(np.isfinite(low).any()):
        sure = int((low > SINK_THRESHOLD).sum())
        open_ = int(((low <= SINK_THRESHOLD) & (high > SINK_THRESHOLD)).sum())
        yield (
            f"{sure} of {low.size} heads leave more than {SINK_THRESHOLD:.0%} of their attention on the first token "
            f"with their whole interval; {open_} more have an interval that holds {SINK_THRESHOLD:.0%}."
        )
    widest = spread["first_token_mass_sd"]
    if bool(np.isfinite(widest).any()) and len(corpus) > 1:
        at = widest.fillna(-1).argmax(["layer", "head"])
        layer, head = int(widest["layer"][at["layer"]]), int(widest["head"][at["head"]])
        q = spread["first_token_mass_quantile"].sel(layer=layer, head=head)
        yield (
            f"Texts differ most in {head_name(layer, head)}: its attention to the first token lies between "
            f"{float(q[0]):.0%} and {float(q[-1]):.0%} in nine texts of ten."
        )


def _heads(corpus: CorpusData, means: dict[str, xr.Dataset]) -> Iterator[Section]:
    """Every score of every head, and intervals of some."""
    if "head_summary" not in means:
        return
    mean = means["head_summary"]
    figures = [view("heads-maps", plots.show(mean, title="Head scores, all texts together"), "Every score by head.")]
    for name in _DRAWN:
        figure = plots.head_intervals(mean, name)
        figures.append(
            view(f"heads-{name}", figure, f"Each head with its 95 % interval: {name.replace('_', ' ')}.", 700)
        )
    yield Section(
        "heads",
        "Heads",
        "Heads",
        "What each head does over all texts, and how much of that another choice of texts would change.",
        "A score is the sum over the queries of all texts divided by how many they are. Bars are 95 % intervals of a "
        "bootstrap over texts: the texts drawn with replacement, 2,000 times.",
        figures,
    )


def _distance(corpus: CorpusData, means: dict[str, xr.Dataset]) -> Iterator[Section]:
    """Attention by distance, by kind of layer; the band of each where few heads are drawn."""
    if "positional_bias" not in means:
        return
    bias = means["positional_bias"]
    kinds = np.asarray(corpus.plan.model.layer_types)
    figures = []
    for kind in (kind for kind in KIND_NAME if kind in kinds):
        part = bias.isel(layer=np.flatnonzero(kinds == kind))
        title = f"{KIND_NAME[kind].capitalize()} layers"
        curves = plots.attention_by_distance(part, title=title, highlight=_typical(means, part))
        shares = plots.attention_share_by_head(part, title=f"{title}, head by head")
        figures.append(view(f"curves-{kind}", curves, f"{title}: mean attention of a pair against its distance."))
        figures.append(view(f"shares-{kind}", shares, f"{title}: where each head spends its attention."))
    figures.append(
        view("r2-map", plots.layer_head_map(bias["positional_r2"], ceiling=1), "Positional R², mean over the texts.")
    )
    yield Section(
        "distance",
        "Positional bias",
        "Positional bias",
        "How much a query attends to a key that lies Δ tokens before it, over the pairs of all texts.",
        "Attention summed over all visible pairs of all texts in a bin of distances, divided by how many such pairs "
        "there are. Bands are 95 % intervals over texts; of many heads, the most typical have theirs.",
        figures,
    )


def _typical(means: dict[str, xr.Dataset], part: xr.Dataset) -> dict[tuple[int, int], str] | None:
    """The heads of these layers that are the most typical of a few kinds, whose bands are drawn; None of few heads."""
    if "head_summary" not in means or part.sizes["layer"] * part.sizes["head"] <= MOST_BANDS:
        return None
    summary = means["head_summary"].sel(layer=part["layer"])[[name for name in _DRAWN if name in KINDS]]
    kinds = typical_heads(summary, 1)
    found = zip(kinds["layer"].values[:, 0], kinds["head"].values[:, 0], kinds["kind"].values, strict=True)
    return {(int(layer), int(head)): str(kind) for layer, head, kind in found if layer >= 0}


def _spread(corpus: CorpusData, means: dict[str, xr.Dataset]) -> Iterator[Section]:
    """Where texts differ, and the texts that the most typical heads do most in."""
    if "head_summary" not in means or len(corpus) < 2:
        return
    spread = corpus.spread("head_summary")
    figures = [
        view(
            f"spread-{name}",
            plots.spread_over_texts(spread, name=name),
            f"The heads in which texts differ most: {name.replace('_', ' ')}.",
            700,
        )
        for name in _DRAWN
    ]
    yield Section(
        "spread",
        "Between texts",
        "Where texts differ",
        "Heads that do something else in one text than in another, the widest first.",
        "The point is the median text, the thick bar the middle half of the texts, the thin one 5 to 95 % of them.",
        figures,
    )
    kinds = typical_heads(means["head_summary"], 1)
    rows = []
    for at, kind in enumerate(kinds["kind"].values.tolist()):
        layer, head = int(kinds["layer"][at, 0]), int(kinds["head"][at, 0])
        if layer < 0:
            continue
        name = str(kinds["score_name"].values[at])
        top = corpus.top_texts("head_summary", name, layer, head, _TOP_TEXTS)
        share = top["value"].attrs["units"] == "1"
        for rank in range(top.sizes["rank"]):
            value = float(top["value"][rank])
            rows.append(
                [
                    Cell(f"{kind}: {head_name(layer, head)}", None),
                    Cell(f"{value:.1%}" if share else number(value), f"{value:.6g}"),
                    Cell(visible_text(top["text"].values[rank], _LONGEST), None),
                    Cell(visible_text(top["opening"].values[rank], _LONGEST), None),
                ]
            )
    yield Section(
        "top-texts",
        "Top texts",
        "Texts that a head does most in",
        "The head that scores highest on each kind's own score, and the texts in which it scores highest.",
        f"Kinds: {', '.join(KINDS.values())}. Any head's top texts: corpus.top_texts(…).",
        columns=["Head", "Score", "Text", "How it begins"],
        rows=rows,
    )


def _along(corpus: CorpusData, means: dict[str, xr.Dataset]) -> Iterator[Section]:
    """What lies along the text: attention received, and the loss."""
    if "received_by_position" in means:
        received = view("received-figure", plots.show(means["received_by_position"]), "Attention received by position.")
        yield Section(
            "received",
            "Received",
            "Attention received",
            "How much attention the keys of each stretch get from the queries that see them.",
            "Summed over the keys of all texts that reach so far.",
            [received],
        )
    if "loss_by_position" in means:
        figure = plots.show(means["loss_by_position"], title="Loss by position")
        yield Section(
            "loss",
            "Loss",
            "Loss by position",
            "How well the model predicts the next token as it has more text to look back on.",
            "Mean over the predicted tokens of all texts in a stretch of positions, with its 95 % interval over texts.",
            [view("loss-figure", figure, "Mean loss by position.")],
        )


def _ranges(corpus: CorpusData, means: dict[str, xr.Dataset]) -> Iterator[Section]:
    """Ranges of the scores over all pairs of all texts."""
    if "score_ranges" in means:
        figure = plots.show(means["score_ranges"])
        yield Section(
            "ranges",
            "Score ranges",
            "Score ranges",
            "The smallest and the largest score of each head in any of the texts, their mean and deviation.",
            "Extremes have no interval: no resample of the texts says what lies beyond the largest.",
            [view("ranges-figure", figure, "Smallest, largest, mean and deviation of the scores by head.")],
        )


_SECTIONS: tuple[Callable[[CorpusData, dict[str, xr.Dataset]], Iterator[Section]], ...] = (
    _heads,
    _distance,
    _spread,
    _along,
    _ranges,
)


def _text_row(row: dict[Hashable, Any]) -> list[Cell]:
    """One text of the table."""
    tokens, loss = int(row["tokens"]), float(row["loss"])
    return [
        Cell(visible_text(row["id"], _LONGEST), None),
        Cell(f"{tokens:,}" if tokens else "–", str(tokens) if tokens else ""),
        Cell(f"{loss:.3f}" if np.isfinite(loss) else "–", f"{loss:.6g}" if np.isfinite(loss) else ""),
        Cell(str(row["status"]), None),
        Cell(visible_text(row["reason"], _LONGEST), None),
        Cell(visible_text(row["opening"], _LONGEST), None),
    ]


def _provenance(corpus: CorpusData) -> dict[str, dict[str, str]]:
    """Where the numbers come from."""
    plan, model = corpus.plan, corpus.plan.model
    found = {
        "model": {
            "name": model.name,
            "loaded from": plan.source or "a model in memory",
            "SHA-256 of the weights": model.weights,
            "type": model.dtype,
            "layers measured": f"{number_ranges(model.layers)} of {model.n_layers}",
        },
        "texts": {"read from": plan.where, "tokens of a text": f"at most {plan.n_tokens:,}"},
        "settings": {
            "analyses": ", ".join(plan.analyses),
            "intervals": "95 %, percentiles of 2,000 resamples of the texts, seed 0",
        },
        "versions": plan.versions,
    }
    return {
        title: {visible_text(name): visible_text(value, _LONGEST * 2) for name, value in entries.items()}
        for title, entries in found.items()
    }
