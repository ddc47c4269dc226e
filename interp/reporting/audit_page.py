"""An audit as one self-contained HTML file: its words, its figures, and a row for each layer."""

from pathlib import Path

import numpy as np

from interp import plots
from interp.analyses.weights.audit_data import AuditData
from interp.analyses.weights.schema import AUDIT_HEADS, AUDIT_LAYERS, AUDIT_ROTATIONS, AUDIT_SCHEDULES
from interp.common.files import check_writable, write_text
from interp.common.schema import Table
from interp.common.words import visible_text
from interp.plots import theme
from interp.reporting.audit_summary import (
    each_layer,
    headline,
    layer_words,
    leaning,
    leaning_heads,
    schedule_words,
)
from interp.reporting.figures import FigureView, view
from interp.reporting.page import page_colours, page_template
from interp.reporting.page_data import as_script
from interp.reporting.sentences import Card, number

_LONGEST_NAME = 80
_ONE_HEAD = 2
_TABLES: tuple[tuple[str, Table], ...] = (
    ("Rotations", AUDIT_ROTATIONS),
    ("Schedules", AUDIT_SCHEDULES),
    ("Layers", AUDIT_LAYERS),
    ("Heads", AUDIT_HEADS),
)


def write_audit(data: AuditData, path: str | Path) -> Path:
    """Write an audit as one HTML file that needs no network and no other file.

    Args:
        data: what was found.
        path: where to put it, in one step. A page of ours that stands there is replaced; nothing else ever is.

    Raises:
        OutputError: the file cannot be written, or one stands there that is no page of ours.
    """
    check_writable(path)
    return write_text(path, render_audit(data))


def render_audit(data: AuditData) -> str:
    """The page as HTML."""
    from plotly.offline import get_plotlyjs

    bounded = bool(np.isfinite(data.layers["bound"]).any())
    known = bool(np.isfinite(data.heads["singular_value"]).any())
    rotates = bool(data.rotations.sizes["rotation"])
    return page_template("audit.html.j2").render(
        model=visible_text(data.name, _LONGEST_NAME),
        headline=headline(data),
        cards=_cards(data),
        layers=layer_words(data),
        wavelengths=view(
            "wavelengths-figure",
            plots.wavelengths(data.rotations, title="Wavelengths"),
            "Wavelength of every frequency pair.",
        ),
        schedule_words=schedule_words(data),
        schedules=view(
            "schedules-figure",
            plots.schedule_changes(data.schedules, title="Speed of each pair"),
            "Speed of every pair by schedule.",
        )
        if rotates
        else None,
        factor=f"{data.schedules.attrs['factor']:g}",
        bounds=_bound_view(data) if bounded else None,
        no_bound=_reasons(data.layers["bound_reason"].values),
        heads=_head_view(data) if known else None,
        no_heads=_reasons(data.heads["reason"].values) or "no layer turns q and k",
        n_tokens=f"{data.heads.attrs['n_tokens']:,}",
        leaning=leaning_heads(data),
        one_head=_one_head_views(data) if known else [],
        each=each_layer(data),
        glossary=[(name, [(word, _said(table, word)) for word in table]) for name, table in _TABLES],
        map_shades=theme.SHADES,
        map_shades_dark=[theme.DARK[colour] for colour in theme.SHADES],
        page_data=as_script({"colours": page_colours()}),
        plotly_js=get_plotlyjs(),
    )


def _bound_view(data: AuditData) -> FigureView:
    """Bounds by distance."""
    bound = data.layers["largest_bound"]
    said = f"From {number(float(bound.min()))} to {number(float(bound.max()))} at any distance."
    return view("bounds-figure", plots.proven_scores(data.layers), f"Proven bound of each head by distance. {said}")


def _head_view(data: AuditData) -> FigureView:
    """Every head's pairs."""
    return view(
        "heads-figure",
        plots.pair_strengths(data.heads, title="What each pair can add"),
        "Largest singular value of each pair, one row per head.",
    )


def _one_head_views(data: AuditData) -> list[FigureView]:
    """The pairs of the heads that lean on position most."""
    return [
        view(
            f"head-{layer}-{head}",
            plots.pair_strengths(data.heads, layer=layer, head=head),
            f"Frequency pairs of layer {layer}, head {head}: what each can add, and adds on average by distance.",
        )
        for layer, head in leaning(data)[:_ONE_HEAD]
    ]


def _cards(data: AuditData) -> list[Card]:
    """The numbers at the top."""
    cards = []
    for name in data.rotations["rotation"].values.tolist()[:2]:
        one = data.rotations.sel(rotation=name)
        pairs = int(np.isfinite(one["wavelength"]).sum())
        kind = name.removesuffix("_attention")
        cards.append(Card(f"{int(one['slow_pairs'])} of {pairs}", "pairs never turn once", f"{kind} layers"))
        first = float(one["first_negative"])
        if np.isfinite(first):
            cards.append(Card(f"{first:,.0f}", "tokens", f"from there Σ cos(θΔ) is below 0, {kind} layers"))
    bound = data.layers["largest_bound"]
    if np.isfinite(bound).any():
        cards.append(Card(number(float(bound.max())), "largest score", "that any text can make, in any head"))
        room = data.layers["headroom"].sel(dtype="float16")
        safe = int((room > 1).sum())
        cards.append(Card(f"{safe} of {room.size}", "heads", "are proven to fit into float16"))
    return cards


def _reasons(words: np.ndarray) -> str:
    """Why something is missing, each reason once."""
    return "; ".join(dict.fromkeys(str(word) for word in words.tolist() if word))


def _said(table: Table, word: str) -> str:
    """What a variable is and how it is computed."""
    variable = table[word]
    text = variable.description + (f": {variable.formula}" if variable.formula else "")
    return text.replace("<n_tokens>", "many").replace("<factor>", "factor") + (
        f" ({variable.source})" if variable.source else ""
    )
