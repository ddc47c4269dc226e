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
# into the score, sliding windows cut distances off, and the first token draws attention whatever it says. This notebook
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
# positional bias of a head, with everything that the words contribute averaged out. One line is one head; both axes are
# logarithmic.

# %%
bias = positional_bias(cap)
plots.show(bias.sel(layer=SLIDING), title="Sliding layers: mean attention of a pair by its distance")

# %%
plots.show(bias.sel(layer=FULL), title="Full layers: the same")

# %% [markdown]
# The lines say how attention thins out with distance, but there are also more pairs far away than near. So how far does
# a head look? Take the distance within which half of all its attention lies.

# %%
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
# A **sink** is a token that gets attention for being there. Softmax has to spend its 100 % somewhere; a head without
# anything to find spends it on the first token. Here is the mean attention to it, over the queries that can see it
# (in a sliding layer these are the first 511 after it).

# %%
sink = first_token_mass(cap)
plots.show(sink, title="Attention to the first token")

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

# %% [markdown]
# A pair whose q and k point the same way for every token makes a bias of distance alone: it falls as the pair turns.
# Fast pairs do that among neighbours. Pairs that hardly turn say nearly the same at every distance: a head can use them
# for *what* a token says, as if there were no rotation.
#
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
what_if = {
    name: what_if_rope(cap, **change, model=model, groups=("rows", "distances")) for name, change in changes.items()
}

# %% [markdown]
# ALiBi beside RoPE, on the very same queries and keys (direct effect, full layers). ALiBi's slopes are fixed and the
# same in every layer, so its heads fall into as many bands as there are slopes; RoPE's heads were free to learn theirs.

# %%
beside = what_if["ALiBi"].sel(layer=FULL, variant=["as_run", "what_if"])
# ALiBi's steepest heads fall to nothing; what matters is above a millionth.
plots.show(beside, title="Full layers: RoPE as run, and ALiBi instead").update_yaxes(range=[-6, 0])

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
    print(f"  variance, depending on the head, and the first token holds {float(held.mean()):.0%} of the attention.")
as_run = summary.loc["as run", "loss [nats]"]
for name in changes:
    print(f"{name}: loss {summary.loc[name, 'loss [nats]'] - as_run:+.2f} nats per token.")

# %% [markdown]
# Distance is a real part of what heads do, but for most of them not the larger one. The rotation cannot be taken out of
# the trained weights, nor exchanged for ALiBi; how much each change costs is the measure of how much they lean on it.
#
# Next: [how large can scores get?](03_score_ranges.ipynb)
