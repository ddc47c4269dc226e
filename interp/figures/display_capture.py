"""A capture as a small HTML table: model, text, layers, stages, size."""

import html
from typing import TYPE_CHECKING

from interp.figures.plots_base import visible_text
from interp.figures.theme import KIND_NAME

if TYPE_CHECKING:
    from interp.captures import Capture

_FIRST_TOKENS = 12


def capture_html(cap: "Capture") -> str:
    """The table; every text of the capture is escaped."""
    stages = dict.fromkeys(stage for layer in cap.layers for stage in cap.stages(layer))
    kinds: dict[str, int] = {}
    for layer in cap.layers:
        name = KIND_NAME[cap.cfg.layer_type(layer)]
        kinds[name] = kinds.get(name, 0) + 1
    tokens = " ".join(visible_text(token).replace(" ", "·") for token in cap.str_tokens[:_FIRST_TOKENS])
    rows = {
        "model": visible_text(cap.model_id, 80),
        "tokens": f"{len(cap.positions):,}: {tokens}" + (" …" if len(cap.str_tokens) > _FIRST_TOKENS else ""),
        "layers": ", ".join(f"{count} {name}" for name, count in kinds.items()),
        "heads": f"{cap.cfg.n_heads} over {cap.cfg.n_kv_heads} kv heads, d_head {cap.cfg.d_head}",
        "q and k at": ", ".join(stages),
        "size": f"{cap.n_bytes / 1e6:,.1f} MB",
    }
    if len(cap.loss):
        rows["loss"] = f"{float(cap.loss.double().mean()):.3f} nats per token"
    cells = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption style='text-align:left'><b>Capture</b></caption>{cells}</table>"
