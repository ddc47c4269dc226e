"""What a capture holds, in one line and as a table."""

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from interp.captures import Capture


def holdings(cap: "Capture") -> pd.DataFrame:
    """One row for each layer; reads no tensor, on disk or in memory."""
    rows = []
    for layer in cap.layers:
        infos = cap._layers[layer].infos()
        final = infos["q.final"]
        rows.append(
            {
                "layer": layer,
                "type": cap.cfg.layer_type(layer),
                "window": cap.spec(layer).window or "",
                "stages": ", ".join(cap.stages(layer)),
                "q": " × ".join(map(str, final.shape)),
                "k": " × ".join(map(str, infos["k.final"].shape)),
                "dtype": str(final.dtype).removeprefix("torch."),
                "bytes": sum(info.n_bytes for info in infos.values()),
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS).set_index("layer")


_COLUMNS = ["layer", "type", "window", "stages", "q", "k", "dtype", "bytes"]


def in_words(cap: "Capture") -> str:
    """One line: model, tokens, layers, stages, size, and where it is."""
    stages = dict.fromkeys(stage for layer in cap.layers for stage in cap.stages(layer))
    heads = f"{cap.cfg.n_heads} heads over {cap.cfg.n_kv_heads} kv heads"
    unfinished = "" if cap.is_complete else ", UNFINISHED"
    where = "" if cap.path is None else f"; {str(cap.path)!r}"
    return (
        f"Capture({cap.model_id}: {len(cap.positions):,} tokens, {len(cap.layers)} layers × {heads}, "
        f"q and k at {', '.join(stages) or 'no stage yet'}; {cap.n_bytes / 1e6:,.1f} MB{where}{unfinished})"
    )


def as_html(cap: "Capture") -> str:
    """What it is, what is held of each layer, and whether it is whole, for a notebook."""
    from interp.figures.display_capture import capture_html

    unfinished = "" if cap.is_complete else "<p>unfinished: <code>ropescope resume</code> goes on with it</p>"
    return f"{capture_html(cap)}{unfinished}{holdings(cap).to_html()}"
