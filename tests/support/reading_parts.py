"""A long text read in parts against the same text at once: what every layer makes of it, patterns and logits."""

import torch

from hooks import HookedTransformer, KeyValueCache

ROWS = (0, 700, 4095, 8191)
WITHIN = 1e-5


def same_in_parts(native, theirs, tokens, size=1000):
    """Raise unless a text in parts is the text at once, native and attached; the largest difference, of the range.

    Compared are q, k and z of every layer at some positions and of the last one at all, rows of the patterns of three
    layers, the residual stream, and logits.
    """
    last, worst = native.cfg.n_layers - 1, 0.0
    residual = f"blocks.{last}.hook_resid_post"
    at_once = read_in_parts(native, tokens, tokens.shape[1])
    assert len(at_once) == 3 * (last + 1) + 3 * len(ROWS) + 1
    with HookedTransformer.attach(theirs, native.tokenizer) as attached:
        for model in (native, attached):
            in_parts = read_in_parts(model, tokens, size)
            assert in_parts.keys() == at_once.keys()
            with torch.no_grad():
                logits = [model.unembed_residual(read[residual][:, ::64]) for read in (in_parts, at_once)]
            worst = max(worst, apart(*logits))
            for name, expected in at_once.items():
                off = apart(in_parts[name], expected, 1.0 if isinstance(name, tuple) else None)
                assert off < WITHIN, (name, off)
                worst = max(worst, off)
    assert worst < WITHIN, worst
    return worst


def apart(one, other, spread=None):
    """The largest difference, as a share of the range."""
    spread = float(other.max() - other.min()) if spread is None else spread
    return float((one - other).abs().max()) / spread


def read_in_parts(model, tokens, size):
    """{point: what it saw at every 64th position, in the last layer at each}, and {(point, row): row of a pattern}."""
    last, past = model.cfg.n_layers - 1, KeyValueCache(model)
    kept, rows = {}, {}

    def keep(x, hook):
        step = 1 if hook.layer() == last else 64
        kept.setdefault(hook.name, []).append(x[:, -start % step :: step].clone())

    def note(pattern, hook):
        queries = hook.ctx["query_positions"].tolist()
        for row in set(ROWS) & set(queries):
            rows[hook.name, row] = line = torch.zeros(pattern.shape[1], tokens.shape[1])
            line[:, hook.ctx["key_positions"]] = pattern[0, :, queries.index(row)]

    points = ["blocks.*.attn.hook_q_final", "blocks.*.attn.hook_k_final", "blocks.*.attn.hook_z"]
    hooks = [(point, keep) for point in [*points, f"blocks.{last}.hook_resid_post"]]
    hooks += [(f"blocks.{layer}.attn.hook_pattern_rows", note) for layer in (0, last // 2, last)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        for start in range(0, tokens.shape[1], size):
            model(tokens[:, start : start + size], return_type=None, past=past if size < tokens.shape[1] else None)
    return {name: torch.cat(parts, 1) for name, parts in kept.items()} | rows
