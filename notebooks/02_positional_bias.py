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
# # 2. Positional bias: how much of attention is about *where*, not *what*?
#
# A head may attend to a token for what it says or for where it stands. RoPE writes the distance between query and key
# into the score, sliding windows cut distances off, and the first token draws many times its share. This notebook
# takes Gemma 3 270M apart by distance: **which heads look near, which far, which pairs of features make it so, and what
# would be left if the rotation were another, or none, or ALiBi?**

# %%
import pandas as pd
import plotly.io as pio

from hooks import HookedTransformer, RopeConfig
from interp import (
    capture,
    first_token_mass,
    frequency_bias,
    plots,
    positional_bias,
    standard_text,
    typical_distance,
    what_if_rope,
)

pio.templates.default = "ropescope"

N_TOKENS = 2_048
# What the words say is asserted in the cell after them: at any length, or in its digits at the length written for.
AS_WRITTEN = N_TOKENS == 2_048

# %% [markdown]
# `capture` runs the model once and keeps q and k of every layer, before and after each step, with v and the loss. All
# that follows is computed from them; no pattern is stored.

# %%
model = HookedTransformer.from_pretrained("gemma3-270m")
cap = capture(model, standard_text(), n_tokens=N_TOKENS)
FULL = [layer for layer in cap.layers if cap.cfg.layer_type(layer) == "full_attention"]
SLIDING = [layer for layer in cap.layers if layer not in FULL]
print(cap)

# %% [markdown]
# ## Attention by distance
#
# Take all pairs of a query and a key that are Δ tokens apart, and average the attention between them: that is the
# positional bias of a head, averaged over what the words are. One line is one head; both axes are logarithmic.

# %%
bias = positional_bias(cap)
plots.show(bias.sel(layer=SLIDING), title="Sliding layers: mean attention of a pair by its distance")

# %%
plots.show(bias.sel(layer=FULL), title="Full layers: the same")

# %% [markdown]
# In every head a pair that is near holds more attention than one that is far, but a query has more far keys than near
# ones. So how far does a head look? Take the distance within which half of all its attention lies.

# %%
mean = bias["attention_mean"]
if AS_WRITTEN:
    assert (mean.sel(distance=slice(0, 9)).mean("distance") > mean.sel(distance=slice(100, 500)).mean("distance")).all()
half = typical_distance(bias, 0.5)
for name, layers in (("sliding", SLIDING), ("full", FULL)):
    middle = half.sel(layer=layers)
    print(
        f"{name:>8} layers: half of a head's attention lies within {int(middle.min())} to {int(middle.max())} tokens, "
        f"depending on the head (median {int(middle.median())})"
    )

# %% [markdown]
# ## How much of the *score* is distance?
#
# The score is what enters softmax. `positional_r2` is the share of its variance that lies *between* distances: 0 if
# distance says nothing about a head's score, 1 if it says all. It needs no threshold and no second text.

# %%
plots.show(bias["positional_r2"], title="Share of the score's variance that distance explains")

# %% [markdown]
# ## Sinks
#
# A **sink** is a token that gets attention for being there: softmax has to spend its 100 % somewhere, and spends much
# of it on the first token. Here is the mean attention to it, over the queries that can see it. In a full layer these
# are all that follow, in a sliding layer only the first 511; later queries have no such token.

# %%
sink = first_token_mass(cap)
plots.show(sink, title="Attention to the first token")

# %%
everyone = cap.statistics()["sink_mass"].sel(sink_size=1).isel(query=slice(1, None)).mean("query")
for name, layers in (("sliding", SLIDING), ("full", FULL)):
    seeing, all_queries = (float(held.sel(layer=layers).mean()) for held in (sink, everyone))
    print(f"{name:>8} layers: {seeing:.1%} over the queries that see it, {all_queries:.1%} over all queries")
    # Its even share among the keys: the mean of 1 / (keys seen) over those queries.
    n_seeing = min(N_TOKENS, cap.spec(layers[0]).window or N_TOKENS) - 1
    even = sum(1 / keys for keys in range(2, n_seeing + 2)) / n_seeing
    assert seeing > 3 * even
assert {cap.spec(layer).window for layer in SLIDING} == {512}
if AS_WRITTEN:
    assert float(sink.sel(layer=SLIDING).mean()) > 3 * float(everyone.sel(layer=SLIDING).mean())

# %% [markdown]
# ## Which frequencies do it?
#
# RoPE turns features in pairs, each pair with a frequency of its own. A score is a sum over the pairs, so its mean at
# each distance splits exactly into what every pair adds. Here is the head whose scores depend most on distance: above,
# how large q and k are in each pair; below, what the pair adds to the score at each distance, blue for more and orange
# for less.

# %%
at = bias["positional_r2"].argmax(["layer", "head"])
layer, head = cap.layers[int(at["layer"])], int(at["head"])
pairs = frequency_bias(cap, layers=layer, distances="binned")
plots.frequency_pairs(pairs, layer=layer, head=head)

# %%
added = pairs["score_mean"].sel(layer=layer, head=head)
whole = added.sum("pair", min_count=1)
swing = added.max("distance_bin") - added.min("distance_bin")
most = int(swing.argmax("pair"))
print(f"The mean score of layer {layer}, head {head} changes by {float(whole.max() - whole.min()):.1f} over distance;")
wavelength = float(pairs["wavelength"].sel(layer=layer)[most])
print(
    f"pair {most} of {added.sizes['pair']}, which turns once in {wavelength:,.0f} tokens, by {float(swing[most]):.1f}."
)
last = cap.spec(layer).window or N_TOKENS
slow = pairs["wavelength"].sel(layer=layer) > 20 * last
print(f"The {int(slow.sum())} pairs that turn less than a 20th within {last} tokens change by at most", end=" ")
print(f"{float(swing.where(slow).max()):.2f} each.")
# The split is exact: all pairs together are the mean score, which another pass measured.
means = bias[["score_mean", "count"]].sel(layer=layer).sel(head=head)
first_bin = slice(int(pairs["first_distance"][-1]), int(pairs["last_distance"][-1]))
in_bin = means.sel(distance=first_bin).dropna("distance")
assert abs(float(in_bin["score_mean"].weighted(in_bin["count"]).mean()) - float(whole[-1])) < 1e-3

# %% [markdown]
# A pair whose q and k point the same way for every token makes a bias of distance alone: it falls as the pair turns.
# Pairs that hardly turn within the window say nearly the same at every distance: a head can use them for *what* a token
# says, as if there were no rotation.

# %%
assert float(swing.where(slow).max()) < float(swing.max()) / 4
if AS_WRITTEN:
    assert float(swing.where(slow).max()) < 0.2 < 4 < float(swing.max())

# %% [markdown]
# ## What if?
#
# q and k from before the rotation can be rotated once more, by another schedule, and measured again: that is the
# *direct* effect. Given the model, `what_if_rope` also runs it under the setting, so that every layer reads what the
# changed layers before it wrote: the *full* effect, with its loss. None of these models was trained that way; the
# question is what the trained weights lean on.
#
# * **no rotation** at all;
# * **one base**: the full layers turn with the sliding layers' θ of 10,000, a hundred times smaller than their own;
# * **ALiBi** in place of RoPE: nothing rotates, and each head subtracts slope · Δ from its scores.

# %%
alibi = [2 ** (-8 * (head + 1) / cap.cfg.n_heads) for head in range(cap.cfg.n_heads)]
changes = {
    "no rotation": {"rope": None},
    "one base": {"rope": {"full_attention": RopeConfig(rope_theta=10_000.0)}},
    "ALiBi": {"rope": None, "alibi_slopes": alibi},
}
assert all(cap.cfg.rope_for(layer).rope_theta == 100 * cap.cfg.rope_for(SLIDING[0]).rope_theta for layer in FULL)
assert cap.cfg.rope_for(SLIDING[0]).rope_theta == 10_000
what_if = {
    name: what_if_rope(cap, **change, model=model, groups=("rows", "distances")) for name, change in changes.items()
}

# %% [markdown]
# ALiBi beside RoPE, on the very same queries and keys (direct effect, full layers). ALiBi's slopes are fixed and the
# same in every layer, so its heads fall into as many bands as there are slopes: the steeper, the shorter the reach.

# %%
beside = what_if["ALiBi"].sel(layer=FULL, variant=["as_run", "what_if"])
# ALiBi's steepest heads fall to nothing; what matters is above a millionth.
plots.show(beside, title="Full layers: RoPE as run, and ALiBi instead").update_yaxes(range=[-6, 0])

# %%
alone = beside.sel(variant="what_if")
reach = (alone["attention"] / alone["count"] > 1e-6).sum("distance")
print("distances with more than a millionth, by layer and head:", *reach.values.tolist())
if AS_WRITTEN:  # each band ends before the next one begins
    assert (reach.max("layer").values[:-1] < reach.min("layer").values[1:]).all()

# %%
table = {}
for name, result in what_if.items():
    near = result["local_mass"].mean(("head", "query")).sel(layer=FULL).mean("layer")
    loss = result["loss_mean"].mean("position_bin")
    table |= {"as run": (near.sel(variant="as_run"), near.sel(variant="as_run"), loss.sel(variant="as_run"))}
    table[name] = (near.sel(variant="what_if"), near.sel(variant="full"), loss.sel(variant="full"))
columns = ["nearest 64 keys, direct", "nearest 64 keys, full", "loss [nats]"]
summary = pd.DataFrame({name: map(float, row) for name, row in table.items()}, index=columns).T
summary.round(3)

# %% [markdown]
# ## The answer

# %%
print(f"{N_TOKENS:,} tokens, {len(cap.layers) * cap.cfg.n_heads} heads.")
for name, layers in (("sliding", SLIDING), ("full", FULL)):
    spread, held = bias["positional_r2"].sel(layer=layers), sink.sel(layer=layers)
    print(
        f"In the {name} layers distance explains {float(spread.min()):.0%} to {float(spread.max()):.0%} of the scores'"
    )
    print(
        f"  variance, depending on the head, and the first token holds {float(held.mean()):.0%} of the attention",
        end="",
    )
    print(f" of the queries that see it ({float(everyone.sel(layer=layers).mean()):.1%} of all queries').")
as_run = summary.loc["as run", "loss [nats]"]
for name in changes:
    print(f"{name}: loss {summary.loc[name, 'loss [nats]'] - as_run:+.2f} nats per token.")

# %% [markdown]
# Distance is a real part of what heads do, but in all but two of the 72 it explains less than half of the scores'
# variance. The rotation cannot be taken out of the trained weights, nor exchanged for ALiBi, without losing more than
# 4 nats per token; the full layers' base can be changed for less than 0.2.

# %%
cost = summary["loss [nats]"] - as_run
assert min(cost["no rotation"], cost["ALiBi"]) > 1 > cost["one base"]
if AS_WRITTEN:
    assert int((bias["positional_r2"] >= 0.5).sum()) == 2 and bias["positional_r2"].size == 72
    assert min(cost["no rotation"], cost["ALiBi"]) > 4 and 0 < cost["one base"] < 0.2

# %% [markdown]
# Next: [how large can scores get?](03_score_ranges.ipynb)
