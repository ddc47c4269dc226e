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
# # 3. Score ranges: what does QK-norm guarantee, and does its order with RoPE matter?
#
# QK-norm is sold on numbers: scores stay bounded, so float16 cannot overflow and int8 loses less; and it is said that
# the norm belongs before the rotation. That can be measured: **what do the norm's weights prove, how much of it does a
# real model use, what happens without the norm or in the other order, and what does low precision cost?**

# %%
import dataclasses

import pandas as pd
import plotly.io as pio
import torch

from hooks import AttentionSpec, HookedTransformer, QKNormConfig
from interp import capture, plots, precision_cost, relativity_error, score_bound, score_ranges, standard_text

pio.templates.default = "ropescope"
pd.set_option("display.max_colwidth", None)

N_TOKENS = 1_024
# What the words say is asserted in the cell after them: at any length, or in its digits at the length written for.
AS_WRITTEN = N_TOKENS == 1_024

# %% [markdown]
# ## The claim, in its own setting
#
# "With QK-norm, q and k have norm 1 and scores lie in [−64, 64] at a head width of 64." RMS norm divides by the root
# *mean* square, so the vectors it leaves have length √d, not 1, and the largest product of two of them is d.
# `score_bound` says what a norm's gains prove, for any rotation. With all gains at 1 and no scale it is exactly that
# number; with the usual scale 1/√d the score that enters softmax is bounded by √d.

# %%
rows = {}
for d in (64, 128):
    q = torch.randn(4096, d, generator=torch.Generator().manual_seed(0))
    normed = torch.nn.functional.rms_norm(q, (d,))
    ones = torch.ones(d)
    bound = {scale: score_bound(QKNormConfig(), None, ones, ones, AttentionSpec(scale=scale)) for scale in (1, d**-0.5)}
    rows[d] = [float(normed.norm(dim=-1).mean()), bound[1], bound[d**-0.5]]
    assert abs(rows[d][0] / d**0.5 - 1) < 1e-4
    assert abs(rows[d][1] / d - 1) < 1e-6 and abs(rows[d][2] / d**0.5 - 1) < 1e-6
pd.DataFrame(rows, index=["length after the norm", "bound of q·k", "bound of q·k / √d"]).T.rename_axis("d").round(2)

# %% [markdown]
# ## In a trained model
#
# The gains are learned, and they move the bound by the largest factor by which any pair of features is stretched in q
# and k together. Pairs turn, so that factor depends on the distances that occur. `score_ranges` takes a text's q and k
# through the steps as they are, without the norm, without the rotation, and in the other order, and puts the bound
# beside what was seen. This is the *direct* effect in each layer: the text's own q and k, with one step changed.
#
# Gemma 3 270M normalises before it rotates. Bars go from a head's smallest to its largest score, strong colour for the
# inner quantiles; the axis is logarithmic in both directions.

# %%
model = HookedTransformer.from_pretrained("gemma3-270m")
cap = capture(model, standard_text(), n_tokens=N_TOKENS)
ranges = score_ranges(cap)
plots.show(ranges)

# %%
largest = abs(ranges[["min", "max"]].to_dataarray()).max("variable")
table = pd.DataFrame(
    {
        "largest |score|": largest.max(("layer", "head")),
        "smallest bound": ranges["bound"].min(("layer", "head")),
        "largest bound": ranges["bound"].max(("layer", "head")),
        "most of its bound used": ranges["utilisation"].max(("layer", "head")),
        "float16 fits q·k … times": ranges["float16_headroom"].min(("layer", "head")),
    },
    index=ranges["variant"].to_series(),
)
table.round(3)

# %% [markdown]
# Read the last column first. float16 ends at 65,504, and it is the product q·k *before* scaling that must fit: below 1
# it does not. The norm's bound proves that it fits, for any text of this length; without the norm nothing proves it.
#
# "Of this length", for a full layer's bound grows with the distances that occur: a slow pair has to turn before its
# large gain on one feature of q meets the large gain on the other of k. A sliding layer's window ends that early.

# %%
constants = {layer: cap.constants(layer) for layer in cap.layers}
FULL = [layer for layer in cap.layers if cap.cfg.layer_type(layer) == "full_attention"]
reaches = {f"{n:,} tokens": n - 1 for n in (N_TOKENS, 32_768)} | {"any length": None}
reached = pd.DataFrame(
    {
        name: {
            layer: score_bound(
                cap.cfg.qk_norm,
                cap.cfg.rope_for(layer),
                one.gain_q,
                one.gain_k,
                one.spec,
                frequencies=one.inv_freq,
                max_distance=reach,
            ).max()
            for layer, one in constants.items()
        }
        for name, reach in reaches.items()
    }
).rename_axis("layer")
always = min(65_504 * constants[layer].spec.scale / reached.loc[layer, "any length"] for layer in cap.layers)
print(f"float16 holds the largest q·k that these weights allow {always:.2f} times, whatever the text and its length")
reached.loc[FULL].round(0)

# %%
assert table.loc["no_norm", "float16 fits q·k … times"] < table.loc["as_run", "float16 fits q·k … times"]
assert pd.isna(table.loc["no_norm", "largest bound"]) and table.loc["as_run", "most of its bound used"] < 1
assert always > 1
here, far, ever = (reached[name] for name in reaches)
assert here.max() <= table.loc["as_run", "largest bound"] * (1 + 1e-6)
assert (here <= far * (1 + 1e-9)).all() and (far <= ever * (1 + 1e-9)).all()
if AS_WRITTEN:
    assert table.loc["no_norm", "float16 fits q·k … times"] < 1
    assert (here.drop(FULL) == far.drop(FULL)).all() and (here[FULL] < far[FULL]).all()
    assert [f"{here[17]:.0f}", f"{far[17]:,.0f}"] == ["528", "1,815"]

# %% [markdown]
# ## The other order
#
# "A rotation amplifies some dimensions", so the norm had better come after? A rotation keeps the length of every pair,
# and RMS norm divides by the length of the whole: without gains the two orders are *the same function*. The order only
# decides what the gains meet. Before the rotation they scale fixed features. After it, they scale what has been turned:
# if the two features of a pair have different gains, a circle becomes an ellipse, and the score of two tokens depends
# on where they stand, no longer on their distance alone. `relativity_error` moves all positions by a shift and says how
# much scores change, as a share of their spread.

# %%
swapped_norm = dataclasses.replace(model.cfg.qk_norm, position="after_rope")
models = {
    "as trained": model,
    "norm after rotation": model.with_config(qk_norm=swapped_norm),
    "no norm": model.with_config(qk_norm=None),
}
SHIFT = 1_000
rows, runs = {}, {}
for name, variant in models.items():
    run = runs[name] = cap if variant is model else capture(variant, cap.tokens, stages="pre_rope")
    moved = relativity_error(run, SHIFT, n_queries=64)["relativity_error"]
    nll = variant.loss_per_token(cap.tokens[None], position_ids=torch.arange(SHIFT, SHIFT + len(cap.tokens)))
    rows[name] = [float(moved.median()), float(run.loss.mean()), float(nll.mean())]
columns = ["scores' change", "loss [nats]", f"loss {SHIFT:,} positions later [nats]"]
order = pd.DataFrame(rows, index=columns).T
order.map("{:.3g}".format)

# %%
# Without gains the two orders are the same function: pairs of features as complex numbers, a rotation as a factor.
pairs = torch.randn(4, 8, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
turn = torch.exp(1j * torch.rand(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
lengths = [v.abs().pow(2).mean(-1, keepdim=True).sqrt() for v in (pairs, pairs * turn)]
torch.testing.assert_close(pairs / lengths[0] * turn, pairs * turn / lengths[1])

change = order["scores' change"]
assert max(change["as trained"], change["no norm"]) < 1e-10 and change["norm after rotation"] > 0.1

# %% [markdown]
# The swapped and the norm-free model have weights that were trained for something else, so their losses say how much
# the weights rely on the step, not how a model trained that way would do. But that scores stop being relative follows
# from gains that differ within a pair. Whether training is more or less stable cannot be measured on finished weights,
# and is not claimed here.
#
# ## What low precision costs
#
# Round q and k, as they enter the score, to float16, bfloat16 and int8 (one scale per head), and compare the attention
# pattern with the exact one: the KL divergence in nats says how far it moves. Beside Gemma as it is stands Gemma with
# its norm taken out, and SmolLM2 135M, which was trained *without* one. Neither is a fair twin: the first was not
# trained that way, the second is another model.

# %%
smol = HookedTransformer.from_pretrained("smollm2-135m")
assert smol.cfg.qk_norm is None
smol_cap = capture(smol, standard_text(), n_tokens=N_TOKENS, layers=range(0, smol.cfg.n_layers, 3))
measured = {"Gemma 3": cap, "Gemma 3, norm taken out": runs["no norm"], "SmolLM2, no norm": smol_cap}
costs = {name: precision_cost(run, queries=64) for name, run in measured.items()}
plots.show(costs["Gemma 3"], title="Gemma 3: KL of the pattern after rounding q and k")

# %%
plots.show(costs["SmolLM2, no norm"], title="SmolLM2: the same, in every third layer")

# %%
rows = {}
for name, cost in costs.items():
    for dtype in cost["dtype"].values:
        one = cost.sel(dtype=dtype)
        proven = float(one["proven_headroom"].min())
        rows[name, str(dtype)] = [
            float(one["kl"].median()),
            float(one["kl"].max()),
            float(one["score_error_max"].max()),
            float(one["headroom"].min()),
            proven,
        ]
columns = ["KL, median head", "KL, worst head", "largest score error", "range fits … times", "proven to fit … times"]
precision = pd.DataFrame(rows, index=columns).T
precision.map(lambda value: "no bound" if pd.isna(value) else f"{value:.1e}" if abs(value) > 1e4 else f"{value:.2g}")

# %% [markdown]
# ## The answer

# %%
as_run, bare, swapped = (table.loc[name] for name in ("as_run", "no_norm", "swapped_order"))
print(f"On {N_TOKENS:,} tokens Gemma's gains prove bounds from {as_run['smallest bound']:.0f} to", end=" ")
print(f"{as_run['largest bound']:.0f} on the score, at any length up to {reached['any length'].max():,.0f};")
print(f"  gains of 1 would prove {cap.cfg.d_head * cap.spec(0).scale:.0f}. This text's largest score is", end=" ")
print(f"{as_run['largest |score|']:.0f},")
print(f"  and no head uses more than {as_run['most of its bound used']:.1%} of its bound.")
print(f"Without the norm the same q and k give scores up to {bare['largest |score|']:,.0f}: float16 holds")
print(f"  {bare['float16 fits q·k … times']:.2f} times their largest q·k, with the norm", end=" ")
print(f"{as_run['float16 fits q·k … times']:.0f} times.")
print(f"Norm after rotation proves {swapped['smallest bound']:.0f} to {swapped['largest bound']:.0f}, but moving all")
print(f"  positions by {SHIFT:,} then changes a median head's scores by", end=" ")
print(f"{change['norm after rotation']:.0%} of their spread ({change['as trained']:.0e} as trained).")
print("Rounding moves a median head's pattern by")
for name in costs:
    moved = {dtype: precision.loc[(name, dtype), "KL, median head"] for dtype in ("int8", "float16")}
    print(f"  {moved['int8']:.1e} nats in int8, {moved['float16']:.1e} in float16: {name}.")

# %% [markdown]
# So: the bound is real, and it is a proof that float16 fits, not the only way to make it fit: SmolLM2 has no norm, and
# float16 holds the largest q·k of the layers looked at 107 times, more often than Gemma's with it. With learned gains
# the bound is another number than d, to be read from the weights. int8 does not suffer less for a norm as such:
# SmolLM2's median head loses the least in it. Norm before the rotation keeps scores relative. The rest is a matter of
# training.
#
# Next: [the same at 32,768 tokens](04_long_sequences.ipynb).

# %%
room = precision["range fits … times"].xs("float16", level=1)
int8 = precision["KL, median head"].xs("int8", level=1)
assert precision["proven to fit … times"]["Gemma 3", "float16"] > 1
assert pd.isna(precision["proven to fit … times"]["SmolLM2, no norm", "float16"]) and room["SmolLM2, no norm"] > 1
assert as_run["largest bound"] > cap.cfg.d_head > cap.cfg.d_head * cap.spec(0).scale
if AS_WRITTEN:
    assert int8.idxmin() == "SmolLM2, no norm"
    assert f"{room['SmolLM2, no norm']:.0f}" == "107" and room["SmolLM2, no norm"] > room["Gemma 3"]
