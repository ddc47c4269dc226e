# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Long sequences: what does attention look like at 32,768 tokens?
#
# Gemma 3 270M has a context of 32,768 tokens, and there attention is hardest to look at: the patterns of its heads
# would take 309 GB. This notebook takes the model to its full length on a CPU, measures every pair of tokens of its
# full layers exactly, reads single rows of attention matrices that never existed, and then edits attention inside the
# run:
# **at this length, how much attention goes to the first token, and what is it worth?**

# %%
import resource
import sys
import tempfile
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import torch

from hooks import HookedTransformer, recipes
from interp import capture, loss_by_position, open_capture, plots, positional_bias, standard_text
from interp.plots import theme

pio.templates.default = "ropescope"

N_TOKENS = 32_768
# What the words say is asserted in the cell after them: at any length, or in its digits on the text written for, which
# comes with Python.
AS_WRITTEN = N_TOKENS == 32_768 and sys.version_info[:2] == (3, 11)


def peak_memory():
    """Largest resident memory of this process so far [GB]; Linux counts kibibytes, mapped pages of files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# %%
model = HookedTransformer.from_pretrained("gemma3-270m")
cfg = model.cfg
FULL = [layer for layer in range(cfg.n_layers) if cfg.layer_type(layer) == "full_attention"]
print(f"layers with full attention: {FULL}; the other {cfg.n_layers - len(FULL)} see {cfg.window(0)} keys")
assert cfg.n_ctx == 32_768 and all(cfg.window(layer) is None for layer in FULL)

# %% [markdown]
# ## What storing patterns would cost
#
# A pattern has one number per head, query and key. Queries, keys and values have one *vector* per head and token, and
# the pattern follows from them. So keep those, and compute the rest when it is asked for. Sizes are of float32.

# %%
lengths = [2**power for power in range(11, 18)]
vector_floats = (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head * cfg.n_layers
costs = pd.DataFrame(
    {
        "patterns [GB]": [4e-9 * cfg.n_layers * cfg.n_heads * n**2 for n in lengths],
        "q, k and v [GB]": [4e-9 * vector_floats * n for n in lengths],
    },
    index=pd.Index(lengths, name="tokens"),
)
assert f"{costs['patterns [GB]'][32_768]:.0f}" == "309"
costs.round(2)

# %% [markdown]
# ## One run, kept on disk
#
# `capture` runs the model once, layer by layer, and keeps q, k, v and the loss of every token: here in a directory, and
# of the full layers and the sliding ones before them only. Without a path it would stay in memory. A run that is killed
# goes on from its last finished layer when it is called again.
#
# The same run answers a question that no table of statistics foresees: how many keys does a query really notice, say
# with more than 1 % of its attention each? `hook_pattern_rows` hands over the exact pattern **one block of rows at a
# time**, all the keys of a few queries, so that any function of rows runs at any length.

# %%
WATCHED = FULL[1]
noticed = []


def count_noticed(pattern, hook):
    """Count the keys above 1 % in each row of a block [batch head query key]; changes nothing."""
    noticed.append((pattern[0] > 0.01).sum(-1))


folder = tempfile.TemporaryDirectory()
chosen = sorted({layer - back for layer in FULL for back in (0, 1)})
with model.hooks(fwd_hooks=[(f"blocks.{WATCHED}.attn.hook_pattern_rows", count_noticed)]):
    capture(model, standard_text(), Path(folder.name) / "gemma", n_tokens=N_TOKENS, stages=(), layers=chosen)

cap = open_capture(Path(folder.name) / "gemma")
print(f"{len(cap.tokens):,} tokens of {cap.provenance['text']['read']}")
assert cap.n_bytes == 4 * vector_floats * N_TOKENS * len(chosen) // cfg.n_layers
peaks = {"the capture with its hook": peak_memory()}
cap.holdings()

# %% [markdown]
# `open_capture` needs no model: this could be another day on another machine. Tensors are read from disk when they are
# used.
#
# ## Every pair, measured
#
# One pass over q and k gives the statistics of every head: attention by distance, by key, per query, and more (the
# command `ropescope stats` lists them). Each query-key pair that a layer's mask leaves counts; nothing is sampled, and
# no matrix is held.

# %%
stats = cap.statistics()
pairs = int(stats["count"].sum()) * cfg.n_heads
print(f"{pairs:,} pairs measured in {stats.sizes['layer'] * stats.sizes['head']} heads")
seen = {layer: min(cfg.window(layer) or N_TOKENS, N_TOKENS) for layer in chosen}
assert pairs == cfg.n_heads * sum(width * N_TOKENS - width * (width - 1) // 2 for width in seen.values())
# What the hook counted inside the run are rows of the pattern that q and k give.
last = cap.pattern[WATCHED, :, -8:, :] > 0.01
assert abs(noticed[-1][:, -8:].numpy() - last.sum("key").values).max() <= 1  # a share of 1 % to within rounding
peaks["every statistic"] = peak_memory()

# %%
bias = positional_bias(cap)
plots.show(bias.sel(layer=FULL), title="Full layers: mean attention of a pair by its distance")

# %%
plots.show(bias.drop_sel(layer=FULL), title="Sliding layers end where their window does")

# %% [markdown]
# Next to the query heads differ more than fiftyfold, and in every one attention falls with distance. Where a curve
# rises again at the far end, that is not about far text: the pairs at the largest distances are those of the last
# queries with the *first* keys, and the very first takes most of it.

# %%
by_distance = bias.sel(layer=FULL)
mean, distance = by_distance["attention_mean"], by_distance["distance"]
beyond_window = bias.drop_sel(layer=FULL)["count"].where(bias["distance"] >= cfg.window(0))
assert beyond_window.sum() == 0
if AS_WRITTEN:
    beside = mean.sel(distance=1)
    assert beside.max() / beside.min() > 50
    near, far = (
        mean.where((distance >= low) & (distance <= high)).mean("distance") for low, high in ((1, 10), (5_000, 15_000))
    )
    assert (near > 10 * far).all()
end = N_TOKENS * 7 // 8
there = distance >= end
held = (mean * by_distance["count"]).where(there).sum("distance")
to_first = stats["sink_mass"].sel(sink_size=1, layer=FULL).isel(query=slice(end, None)).sum("query")
share = float(to_first.sum() / held.sum())
others = (held - to_first) / (by_distance["count"].where(there).sum("distance") - (N_TOKENS - end))
middle = mean.where((distance >= N_TOKENS // 4) & (distance < N_TOKENS // 2)).mean("distance")
raised = float((others / middle).median())
print(f"Of the attention at distances from {end:,} on the first token holds {share:.0%}. Another pair that far apart")
print(f"has {raised:.2f} times the attention of one at {N_TOKENS // 4:,} to {N_TOKENS // 2:,}, in the median head.")
if AS_WRITTEN:
    assert share > 0.5

# %% [markdown]
# ## The sink
#
# The first token is an **attention sink**: heads give it far more attention than any other token gets. What
# they take from there is little, for its value vector is short: a fifth to a half of the median token's. Here is how
# much of each query's attention it holds, along the text.

# %%
sink = stats["sink_mass"].sel(sink_size=1, layer=FULL).isel(query=slice(1, None))
along = sink.coarsen(query=max(1, N_TOKENS // 64), boundary="trim").mean()
figure = go.Figure()
for layer, colour in zip(FULL, theme.SERIES, strict=False):
    for head in along["head"].values:
        line = {"color": colour, "width": 1}
        held = along.sel(layer=layer, head=head)
        figure.add_scatter(x=along["query"], y=held, mode="lines", line=line, opacity=0.35, showlegend=False)
    mean = along.sel(layer=layer).mean("head")
    figure.add_scatter(
        x=along["query"], y=mean, mode="lines", line={"color": colour, "width": 3}, name=f"layer {layer}"
    )
figure.update_xaxes(title="position of the query [tokens]", tickformat=",")
figure.update_yaxes(title="attention to the first token", tickformat=".0%", range=[0, 1.02])
title = "How much of a query's attention the first token holds: each head, and their mean"
figure.update_layout(title=title, height=420, margin_t=80)

# %%
values = {layer: cap.v(layer)[:, 0].norm(dim=-1) for layer in FULL}
short = [float(length[0] / length.median()) for length in values.values()]
print("The first token's value is", ", ".join(f"{share:.2f}" for share in short), "times as long as the median one.")
received = stats["received"].sel(layer=FULL).mean(("layer", "head"))
assert max(short) < 1 and int(received.argmax("key")) == 0
if AS_WRITTEN:
    assert float(received[0] / received[1:].max()) > 5
    assert 0.15 < min(short) < 0.25 and 0.4 < max(short) < 0.55

# %% [markdown]
# ## One row of a matrix that never was
#
# `top_keys` computes one row of one head, exactly, and names its largest entries. This is the last token of the text,
# in the head that looks back farthest of those that leave most of their attention to other tokens than the first.

# %%
looking = stats["mean_distance"].sel(layer=FULL).mean("query").where(sink.mean("query") < 0.5)
at = looking.fillna(-1).argmax(["layer", "head"])
layer, head = FULL[int(at["layer"])], int(at["head"])
row = cap.top_keys(layer, head, query=N_TOKENS - 1, k=8)
print(f"layer {layer}, head {head}: token {row.attrs['query_token']!r} at {row.attrs['query']:,} looks at")
table = row.to_dataframe()[["token", "key", "distance", "attention"]]
scores = cap.k(layer)[:, 0].double() @ cap.q(layer)[-1, head].double() * cap.spec(layer).scale
by_hand = torch.softmax(scores, dim=0)[table["key"].tolist()]
torch.testing.assert_close(torch.tensor(table["attention"].values).double(), by_hand, rtol=1e-3, atol=1e-6)
table.assign(token=table["token"].map(repr)).round(3)

# %% [markdown]
# ## Taking the sink away
#
# What happens if the full layers cannot see the first token? The recipe `remove_sink` hides it from the scores, block
# by block, so that softmax shares its attention out to the other keys. Everything downstream runs on, and the loss says
# what it was worth. (Hidden in *every* layer, it is the same as deleting the token.)

# %%
without = [(f"blocks.{layer}.attn.hook_attn_scores_rows", recipes.remove_sink()) for layer in FULL]
with model.hooks(fwd_hooks=without):
    edited = capture(model, cap.tokens, layers=FULL[-1:], stages=())

peaks["the edited run"] = peak_memory()
before, after = loss_by_position(cap), loss_by_position(edited)
plots.loss_by_position({"as it is": before, "first token hidden": after}, title="Loss along the text")

# %%
piece = cap.tokens[None, :128]
everywhere = [(f"blocks.{layer}.attn.hook_attn_scores_rows", recipes.remove_sink()) for layer in range(cfg.n_layers)]
with torch.no_grad():
    hidden = model.run_with_hooks(piece, fwd_hooks=everywhere)[:, 1:]
    deleted = model(piece[:, 1:], position_ids=torch.arange(1, piece.shape[1]))
assert (hidden - deleted).abs().max() < 1e-4 * deleted.abs().max()

# %% [markdown]
# ## The answer

# %%
heads = sink.mean("query")
change = float(edited.loss.mean() - cap.loss.mean())
half = N_TOKENS // 2
late = float(edited.loss[half:].mean() - cap.loss[half:].mean())
keys = pd.Series(pd.concat([pd.Series(block.flatten()) for block in noticed]))
print(f"{N_TOKENS:,} tokens, {pairs:,} pairs measured exactly.")
print(f"The first token holds {float(heads.mean()):.0%} of the full layers' attention;")
print(f"  by head from {float(heads.min()):.0%} to {float(heads.max()):.0%}.")
print(f"In layer {WATCHED} half of the queries notice at most {int(keys.median())} of up to {N_TOKENS:,} keys.")
print(f"Hiding the first token in the full layers changes the loss by {change:+.3f} nats per token")
print(f"  ({late:+.3f} in the second half of the text).")
patterns = 4e-9 * cfg.n_layers * cfg.n_heads * N_TOKENS**2
print(f"Stored patterns would have taken {patterns:,.1f} GB; the capture took {cap.n_bytes / 1e9:.2f} GB on disk.")
print("This process held at most", ", ".join(f"{peak:.0f} GB up to {step}" for step, peak in peaks.items()) + ".")
if AS_WRITTEN:
    assert change > 0.05 and late > 0.05

# %%
folder.cleanup()

# %% [markdown]
# So length is no reason to look at less: the same calls as on a short text, on a capture that grows with n and not with
# n². Other recipes limit the distance, keep the top k keys, boost or knock out positions (`hooks.recipes`).
#
# Next: [stretching a context beyond what the model was trained on](05_stretching_the_context.ipynb).
