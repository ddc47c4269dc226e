"""What a capture is and holds, described once: in one line, as a table, as HTML."""

import html

import pandas as pd

from interp.common.words import KIND_NAME, visible_text
from interp.tensors.capture_data import CaptureData

_FIRST_TOKENS = 12


def holdings(cap: CaptureData) -> pd.DataFrame:
    """One row for each layer; reads no tensor, on disk or in memory."""
    rows = []
    for layer in cap.layers:
        held = cap._layers[layer]
        infos, final = held.infos(), held.infos()["q.final"]
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
                "stored": sum(info.n_bytes for name, info in infos.items() if name not in held.derived),
                "derived": ", ".join(held.derived),
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS).set_index("layer")


_COLUMNS = ["layer", "type", "window", "stages", "q", "k", "dtype", "bytes", "stored", "derived"]


def in_words(cap: CaptureData) -> str:
    """One line: model, tokens, layers, stages, size, and where it is."""
    stages = dict.fromkeys(stage for layer in cap.layers for stage in cap.stages(layer))
    heads = f"{cap.cfg.n_heads} heads over {cap.cfg.n_kv_heads} kv heads"
    unfinished = "" if cap.is_complete else ", UNFINISHED"
    where = "" if cap.path is None else f"; {str(cap.path)!r}"
    return (
        f"Capture({cap.model_id}: {size_in_words(cap)}, {len(cap.layers)} layers × {heads}, "
        f"q and k at {', '.join(stages) or 'no stage yet'}; {bytes_in_words(cap)}{where}{unfinished})"
    )


def size_in_words(cap: CaptureData) -> str:
    """How many tokens, and in how many documents where they are several."""
    documents = cap.documents
    return f"{len(cap.positions):,} tokens" + ("" if documents is None else f" in {len(documents):,} documents")


def bytes_in_words(cap: CaptureData) -> str:
    """How large q, k and v are, and how much of that is stored where the rest is derived."""
    stored = f" ({cap.stored_bytes / 1e6:,.1f} MB stored)" if cap.stored_bytes < cap.n_bytes else ""
    return f"{cap.n_bytes / 1e6:,.1f} MB{stored}"


def as_html(cap: CaptureData) -> str:
    """What it is, what is held of each layer, and whether it is whole, for a notebook."""
    unfinished = "" if cap.is_complete else "<p>unfinished: <code>ropescope resume</code> goes on with it</p>"
    return f"{_facts(cap)}{unfinished}{holdings(cap).to_html()}"


def _facts(cap: CaptureData) -> str:
    """The table; every text of the capture is escaped."""
    stages = dict.fromkeys(stage for layer in cap.layers for stage in cap.stages(layer))
    kinds: dict[str, int] = {}
    for layer in cap.layers:
        name = KIND_NAME[cap.cfg.layer_type(layer)]
        kinds[name] = kinds.get(name, 0) + 1
    tokens = " ".join(visible_text(token).replace(" ", "·") for token in cap.str_tokens[:_FIRST_TOKENS])
    rows = {
        "model": visible_text(cap.model_id, 80),
        "tokens": f"{size_in_words(cap).replace(' tokens', '', 1)}: {tokens}"
        + (" …" if len(cap.str_tokens) > _FIRST_TOKENS else ""),
        "layers": ", ".join(f"{count} {name}" for name, count in kinds.items()),
        "heads": f"{cap.cfg.n_heads} over {cap.cfg.n_kv_heads} kv heads, d_head {cap.cfg.d_head}",
        "q and k at": ", ".join(stages),
        "size": bytes_in_words(cap),
    }
    if len(cap.loss):
        rows["loss"] = f"{float(cap.predicted_loss.double().mean()):.3f} nats per token"
    cells = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption style='text-align:left'><b>Capture</b></caption>{cells}</table>"
