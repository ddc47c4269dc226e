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
# # 5. Stretching the context: which schedule, and what does it do to the heads?
#
# SmolLM2 135M was trained on 8,192 tokens. RoPE has no table that ends there, so the model runs on longer texts; but
# its slow pairs then reach angles that training never showed. The known remedies change the rotation's frequencies,
# each in its own way, and leave the weights alone. Here each is one line of config, so compare them on one text:
# **what happens beyond 8,192 tokens, which schedule helps, and what does it cost before?**

# %%
import math
import warnings

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import torch

from hooks import ContextLengthWarning, HookedTransformer, RopeConfig
from interp import attention_statistics, capture, loss_by_position, plots, standard_text
from interp.plots import theme

pio.templates.default = "ropescope"
# The model would warn that positions are beyond its training, which is the point here.
warnings.simplefilter("ignore", ContextLengthWarning)

N_TOKENS = 16_384

# %%
model = HookedTransformer.from_pretrained("smollm2-135m")
cfg = model.cfg
TRAINED = 8_192
print(f"{cfg.n_layers} layers, {cfg.n_heads} heads, d_head {cfg.d_head}, trained on {cfg.n_ctx:,} tokens")
print(cfg.rope)

# %% [markdown]
# ## Five schedules
#
# All of them aim at twice the trained length. Fields that are left out are inherited from the model's own `RopeConfig`.
#
# * **default**: nothing changes.
# * **linear**: every frequency is halved, so position 16,384 looks like 8,192.
# * **dynamic**: the base θ grows with the length of the input.
# * **llama3**: fast pairs keep their frequency, slow ones are halved, smoothly in between.
# * **yarn**: the same idea with another ramp, and scores made a little larger.

# %%
LONG = {"factor": 2.0, "original_max_position_embeddings": TRAINED}
SCHEDULES = {
    "default": cfg.rope,
    "linear": RopeConfig(rope_type="linear", factor=2.0),
    "dynamic": RopeConfig(rope_type="dynamic", factor=2.0),
    "yarn": RopeConfig(rope_type="yarn", beta_fast=32.0, beta_slow=1.0, **LONG),
    "llama3": RopeConfig(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, **LONG),
}
variants = {name: model.with_config(rope=rope) for name, rope in SCHEDULES.items()}

# %% [markdown]
# ## Which frequencies change?
#
# The *wavelength* of a pair is the number of tokens in which it turns once. It is often said that Llama 3's schedule
# attenuates the *high* frequencies, and that its frequencies follow the position. Measure both.


# %%
def frequencies(variant, length):
    """inv_freq of every pair for an input of this length [rad/token], and the factor on cos and sin."""
    (rotary,) = variant.rotary.values()
    return rotary.frequencies(length)


own = frequencies(model, TRAINED)[0]
wavelength = 2 * math.pi / own
figure = go.Figure()
for (name, variant), colour in zip(variants.items(), theme.SERIES, strict=False):
    ratio = frequencies(variant, 2 * TRAINED)[0] / own
    # The line of those that change nothing lies under the others.
    line = {"color": colour, "width": 6 if name == "default" else 2}
    figure.add_scatter(x=wavelength, y=ratio, mode="lines+markers", name=name, line=line)
for edge in (TRAINED / 4, TRAINED):
    figure.add_vline(x=edge, line={"color": theme.QUIET, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=math.log10(edge), y=1, yref="paper", yanchor="bottom", showarrow=False, text=f"{edge:,.0f} tokens"
    )
figure.update_xaxes(type="log", dtick=1, title="wavelength of the pair [tokens]: high frequencies left, low ones right")
figure.update_yaxes(title="frequency, new over own", range=[0.3, 1.05])
figure.update_layout(title=f"What each schedule does to a text of {2 * TRAINED:,} tokens", height=440, margin_t=100)
figure.update_layout(legend_y=1.08)

# %%
llama3 = frequencies(variants["llama3"], 2 * TRAINED)[0] / own
fast, slow = wavelength < TRAINED / 4, wavelength > TRAINED
print(f"llama3, {int(fast.sum())} pairs with wavelengths under {TRAINED // 4:,}: × {llama3[fast].min():g} or more")
print(f"llama3, {int(slow.sum())} pairs with wavelengths over {TRAINED:,}: × {llama3[slow].max():g} or less")
for name, variant in variants.items():
    short, long = (frequencies(variant, length)[0] for length in (TRAINED, 2 * TRAINED))
    print(f"{name:>8}: frequencies depend on the length of the input: {'no' if torch.equal(short, long) else 'yes'}")
print(f"yarn multiplies scores by {frequencies(variants['yarn'], TRAINED)[1] ** 2:.3f}")

# %% [markdown]
# It is the other way round: the high frequencies stay exactly as they are, the *low* ones are lowered, and they are
# the same for every input. The one whose frequencies follow the input is dynamic, and it follows the *length* of the
# whole input: all positions of one text turn alike.
#
# ## Loss along the text
#
# One run each over the same tokens. It keeps q, k and the loss of every token; some layers are measured as a whole, and
# all of them on the first tokens.

# %%
tokens = model.to_tokens(standard_text().content)[:, :N_TOKENS]
LAYERS = range(4, cfg.n_layers, 10)
START = slice(0, 1024)

nll, losses, rows, near = {}, {}, {}, {}
for name, variant in variants.items():
    cap = capture(variant, tokens, stages=())
    nll[name], losses[name] = cap.loss, loss_by_position(cap, bins=16)
    rows[name] = cap.statistics(LAYERS, groups="rows")
    # Causal attention: what the first tokens do does not depend on those after them.
    near[name] = [
        attention_statistics(
            cap.q(layer, positions=START), cap.k(layer, positions=START), cap.spec(layer), groups=("distances",)
        )
        for layer in cap.layers
    ]

# %%
plots.loss_by_position(losses, title=f"SmolLM2 trained on {TRAINED:,} tokens, read on to {N_TOKENS:,}")

# %% [markdown]
# The same in numbers, in windows of 2,048 tokens, and the largest difference from what transformers 5.23 measured on
# this text (the standard text of Python 3.11, 16,384 tokens in one shot).

# %%
WINDOW = 2_048
REFERENCE = {
    "default": [2.475, 2.292, 2.388, 2.160, 1.862, 3.300, 5.498, 6.661],
    "linear": [3.414, 3.527, 3.360, 3.380, 3.213, 3.509, 3.586, 3.461],
    "dynamic": [2.532, 2.365, 2.461, 2.295, 2.001, 2.451, 2.643, 2.344],
    "yarn": [2.496, 2.314, 2.423, 2.209, 1.859, 2.379, 2.580, 2.256],
    "llama3": [2.508, 2.370, 2.447, 2.290, 1.959, 2.426, 2.624, 2.330],
}
measured = {name: [float(window.mean()) for window in loss.split(WINDOW)] for name, loss in nll.items()}
columns = [f"{start // 1024}–{(start + WINDOW) // 1024}k" for start in range(0, N_TOKENS, WINDOW)]
table = pd.DataFrame(measured.values(), index=measured, columns=columns)
reference = pd.DataFrame(REFERENCE.values(), index=REFERENCE).iloc[:, : len(columns)].set_axis(columns, axis=1)
print(f"largest difference from transformers: {(table - reference).abs().max().max():.3f} nats")
table.round(3)

# %% [markdown]
# ## What it does to the heads
#
# Why does the default break? The *entropy* of a query's attention says over how many keys it is spread (in nats: e to
# the entropy is that number of keys, were they equal), and the first token is the *sink*, where heads put the attention
# that they have no use for. Both are means over the heads of a few layers, along the text.


# %%
def along_the_text(pick, heading, **axis):
    """One line for each schedule: a statistic of the queries, mean over heads and 32 stretches of the text."""
    figure = go.Figure()
    for (name, stats), colour in zip(rows.items(), theme.SERIES, strict=False):
        mean = pick(stats).mean(("layer", "head")).coarsen(query=max(1, N_TOKENS // 32), boundary="trim").mean()
        figure.add_scatter(x=mean["query"], y=mean, mode="lines", name=name, line={"color": colour})
    figure.add_vline(x=TRAINED, line={"color": theme.QUIET, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="position of the query [tokens]", tickformat=",", range=[0, N_TOKENS])
    figure.update_yaxes(rangemode="tozero", **axis)
    return figure.update_layout(title=heading, height=400, margin_t=80)


along_the_text(lambda stats: stats["entropy"], "How widely queries spread their attention", title="entropy [nats]")

# %%
along_the_text(
    lambda stats: stats["sink_mass"].sel(sink_size=1),
    "How much of it the first token holds",
    title="attention to the first token",
    tickformat=".0%",
)

# %% [markdown]
# And why does linear cost so much where nothing is long? Some heads look at the *previous* token: they need pairs that
# turn fast enough to tell one token back from two. Here is every head of the model, on the first tokens of the
# text: its mean attention to the previous token as trained, and under each schedule.


# %%
def previous_token(parts):
    """Mean attention at distance 1 of every head."""
    return torch.cat([torch.tensor((part["attention"] / part["count"]).sel(distance=1).values) for part in parts])


previous = {name: previous_token(parts) for name, parts in near.items()}
figure = go.Figure()
for (name, mass), colour in zip(previous.items(), theme.SERIES, strict=False):
    if name != "default":
        figure.add_scatter(
            x=previous["default"], y=mass, mode="markers", name=name, marker={"color": colour, "size": 6}
        )
figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": theme.QUIET, "width": 1}, showlegend=False)
figure.update_xaxes(title="attention to the previous token as trained", tickformat=".0%", range=[0, 1.02])
figure.update_yaxes(title="under the schedule", tickformat=".0%", range=[0, 1.02])
figure.update_layout(title="Previous-token heads under each schedule", height=460, margin_t=80)

# %% [markdown]
# ## The answer

# %%
strong = previous["default"].topk(10).indices
summary = pd.DataFrame(
    {
        f"loss up to {TRAINED:,}": {name: float(loss[: TRAINED - 1].mean()) for name, loss in nll.items()},
        f"loss beyond {TRAINED:,}": {name: float(loss[TRAINED - 1 :].mean()) for name, loss in nll.items()},
        "attention to the previous token, 10 strongest heads": {
            name: float(mass[strong].mean()) for name, mass in previous.items()
        },
    }
)
before, beyond = (summary[f"loss {where} {TRAINED:,}"] for where in ("up to", "beyond"))
if N_TOKENS > TRAINED:
    print(f"Beyond {TRAINED:,} tokens {beyond.idxmin()} has the lowest loss, {beyond.idxmax()} the highest.")
costs = (before - before["default"]).drop("default")
print(f"Up to {TRAINED:,} tokens {costs.idxmin()} costs least, {costs.min():+.3f} nats per token,")
print(f"  and {costs.idxmax()} most, {costs.max():+.3f}.")
summary.round(3)

# %% [markdown]
# A schedule that leaves the fastest pairs alone keeps what short distances are read from, and lowering the slow ones
# keeps their angles within what training showed. The good schedules have both in common, and differ in between.
