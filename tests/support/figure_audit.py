"""What every figure must have: a title, numbers or a sentence, names of axes, a legend without repeats."""

import json

import numpy as np


def panels_with_a_sentence(figure):
    """The places, as (x axis, y axis) in parts of the page, in whose middle a sentence stands."""
    notes = [note for note in figure.layout.annotations if note.yanchor == "middle" and note.yref == "paper"]
    return [(note.x, note.y) for note in notes]


def is_said(places, *domains):
    """Whether a sentence stands in the middle of these domains, an axis or both of a panel."""
    return any(all(abs(sum(domain or (0, 1)) / 2 - place[at]) < 1e-6 for at, domain in domains) for place in places)


def panel_of(drawn, axis):
    """Where the panel of an x axis stands from bottom to top."""
    return drawn.get((axis.get("anchor") or "y").replace("y", "yaxis", 1), {}).get("domain")


def is_key(trace):
    """Whether a trace is there for its colour bar only."""
    return trace.type == "scatter" and trace.marker.colorbar.title.text == "layer"


def audit(figure):
    """Everything that is wrong with a figure, in words."""
    layout, wrong = figure.layout, []
    if not layout.title.text:
        wrong.append("no title")
    traces = [trace for trace in figure.data if not is_key(trace)]
    said, drawn = panels_with_a_sentence(figure), json.loads(figure.to_json())["layout"]
    if not traces and not said:
        wrong.append("neither a trace nor a sentence")
    for trace in traces:
        if trace.type == "table":
            continue
        numbers = np.asarray(trace.z if trace.type == "heatmap" else trace.y, dtype=float)
        at = [(trace[f"{letter}axis"] or letter).replace(letter, f"{letter}axis") for letter in "xy"]
        panel = enumerate(layout[name].domain for name in at)
        if not np.isfinite(numbers).any() and not is_said(said, *panel):
            wrong.append(f"{trace.type} {trace.name} is empty and nothing says so")
    for letter in "xy" if traces and traces[0].type != "table" else "":
        axes = {name: axis for name, axis in drawn.items() if name.startswith(f"{letter}axis")}
        for name, axis in axes.items():
            # Panels of a row or column share the title of the outermost.
            beside = [other for other in axes.values() if other.get("domain") == axis.get("domain")]
            # Three or more in a row with one scale share the title of the one in the middle.
            row = [other for other in axes.values() if panel_of(drawn, other) == panel_of(drawn, axis)]
            scales = {json.dumps({key: other.get(key) for key in ("type", "range", "tickvals")}) for other in row}
            if letter == "x" and len(row) > 2 and len(scales) == 1:
                beside.append(sorted(row, key=lambda other: other["domain"])[(len(row) - 1) // 2])
            spoken = is_said(said, ("xy".index(letter), axis.get("domain")))
            if not any(other.get("title", {}).get("text") for other in beside) and not spoken:
                wrong.append(f"{name} has no title")
    entries = [trace.name for trace in figure.data if trace.type != "table" and trace.showlegend is not False]
    entries = [name for name in entries if name]
    if len(entries) != len(set(entries)):
        wrong.append(f"legend entries twice: {entries}")
    return wrong
