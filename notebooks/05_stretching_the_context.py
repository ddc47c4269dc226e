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
# SmolLM2 135M has a context of 8,192 tokens. RoPE has no table that ends there, so the model runs on longer texts; but
# its slow pairs do not get round within the context, and beyond it reach angles that no shorter text has. The known
# remedies change the rotation's frequencies, each in its own way, and leave the weights alone. Here each is one line of
# config, so compare them on one text:
# **what happens beyond 8,192 tokens, why, which schedule helps, and what does it cost before?**

# %%
import math
import sys
import warnings

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import torch

from hooks import ContextLengthWarning, HookedTransformer, RopeConfig
from interp import attention_statistics, capture, loss_by_position, plots, standard_text
from interp.plots import theme

pio.templates.default = "ropescope"
# The model would warn that positions are beyond its context, which is the point here.
warnings.simplefilter("ignore", ContextLengthWarning)

N_TOKENS = 16_384
# What the words say is asserted in the cell after them: at any length, or in its digits on the text written for, which
# comes with Python.
AS_WRITTEN = N_TOKENS == 16_384 and sys.version_info[:2] == (3, 11)

# %%
model = HookedTransformer.from_pretrained("smollm2-135m")
cfg = model.cfg
CONTEXT = 8_192
assert cfg.n_ctx == CONTEXT
print(f"{cfg.n_layers} layers, {cfg.n_heads} heads, d_head {cfg.d_head}, a context of {cfg.n_ctx:,} tokens")
print(cfg.rope)

# %% [markdown]
# ## Five schedules
#
# All but the default aim at twice the context. Fields left out are inherited from the model's own `RopeConfig`.
#
# * **default**: nothing changes.
# * **linear**: every frequency is halved, so a distance of 16,384 looks like 8,192.
# * **dynamic**: the base θ grows with the length of the input, once that is beyond the context.
# * **llama3**: fast pairs keep their frequency, slow ones are halved, smoothly in between.
# * **yarn**: the same idea with another ramp, and scores made a little larger.

# %%
LONG = {"factor": 2.0, "original_max_position_embeddings": CONTEXT}
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


own = frequencies(model, CONTEXT)[0]
wavelength = 2 * math.pi / own
figure = go.Figure()
for (name, variant), colour in zip(variants.items(), theme.SERIES, strict=False):
    ratio = frequencies(variant, 2 * CONTEXT)[0] / own
    # The line of those that change nothing lies under the others.
    line = {"color": colour, "width": 6 if name == "default" else 2}
    figure.add_scatter(x=wavelength, y=ratio, mode="lines+markers", name=name, line=line)
for edge in (CONTEXT / 4, CONTEXT):
    figure.add_vline(x=edge, line={"color": theme.QUIET, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=math.log10(edge), y=1, yref="paper", yanchor="bottom", showarrow=False, text=f"{edge:,.0f} tokens"
    )
figure.update_xaxes(type="log", dtick=1, title="wavelength of the pair [tokens]: high frequencies left, low ones right")
figure.update_yaxes(title="frequency, new over own", range=[0.3, 1.05])
figure.update_layout(title=f"What each schedule does to a text of {2 * CONTEXT:,} tokens", height=440, margin_t=100)
figure.update_layout(legend_y=1.08)

# %%
llama3 = frequencies(variants["llama3"], 2 * CONTEXT)[0] / own
fast, slow = wavelength < CONTEXT / 4, wavelength > CONTEXT
print(f"llama3, {int(fast.sum())} pairs with wavelengths under {CONTEXT // 4:,}: × {llama3[fast].min():g} or more")
print(f"llama3, {int(slow.sum())} pairs with wavelengths over {CONTEXT:,}: × {llama3[slow].max():g} or less")
for name, variant in variants.items():
    short, long = (frequencies(variant, length)[0] for length in (CONTEXT, 2 * CONTEXT))
    print(f"{name:>8}: frequencies depend on the length of the input: {'no' if torch.equal(short, long) else 'yes'}")
yarn_scale = frequencies(variants["yarn"], CONTEXT)[1] ** 2
print(f"yarn multiplies scores by {yarn_scale:.3f}")

assert slow.any()  # pairs that do not get round within the context
changes = {name: frequencies(variant, 2 * CONTEXT)[0] / own for name, variant in variants.items()}
follow = [name for name in variants if not torch.equal(*(frequencies(variants[name], n)[0] for n in (8, 2 * CONTEXT)))]
assert (changes["default"] == 1).all() and (changes["linear"] == 0.5).all() and yarn_scale > 1
assert (llama3[fast] == 1).all() and (llama3[slow] == 0.5).all() and (llama3.diff() <= 0).all()
assert follow == ["dynamic"]
# At 16,384 tokens, twice the context, the base is (2 · 2 − 1) to the power d / (d − 2) times as large.
grown = cfg.rope.rope_theta * 3 ** (cfg.d_head / (cfg.d_head - 2))
torch.testing.assert_close(changes["dynamic"] * own, grown ** -(torch.arange(0, cfg.d_head, 2) / cfg.d_head))
assert torch.equal(frequencies(variants["dynamic"], CONTEXT)[0], own)

# %% [markdown]
# It is the other way round: the high frequencies stay exactly as they are, the *low* ones are lowered, and they are
# the same for every input. The one whose frequencies follow the input is dynamic, and it follows the *length* of the
# whole input: all positions of one text turn alike, and a text that fits the context turns as without it.
#
# ## Loss along the text
#
# One run each over the same tokens, all of them at once. It keeps q, k and the loss of every token; some layers are
# measured as a whole, and all of them on the first tokens.

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
plots.loss_by_position(losses, title=f"SmolLM2, with a context of {CONTEXT:,} tokens, on {N_TOKENS:,}")

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
difference = (table - reference).abs().max().max()
print(f"largest difference from transformers: {difference:.3f} nats")
if AS_WRITTEN:
    assert difference < 0.002
table.round(3)

# %% [markdown]
# ## Why does the default break?
#
# Not because positions are large: scores depend on distances alone. A piece of text shows it. Its second half is moved
# away from the first, so that a gap lies between them, and the loss of the second half says what comes of it. As long
# as no two tokens are farther apart than the context, the far half is of less use, and that is all. Beyond it the far
# half does harm, and the more the farther it is. Moved as a whole, the piece reads as before.
#
# llama3 and yarn have the same weights, and keep the fast pairs as they are. They lower the slow ones, and the harm is
# gone: it comes from pairs of tokens so far apart that the slow pairs of features reach angles that are new.

# %%
PIECE = N_TOKENS // 16
piece = tokens[:, :PIECE]
GAPS = [
    0,
    CONTEXT // 4,
    CONTEXT // 2,
    CONTEXT - PIECE,
    CONTEXT,
    CONTEXT * 5 // 4,
    CONTEXT * 3 // 2,
    2 * CONTEXT - PIECE,
]


def moved_away(variant, gap, first):
    """Loss of the piece's second half when all tokens from ``first`` on stand ``gap`` positions later [nats]."""
    positions = torch.arange(PIECE)
    positions[first:] += gap
    return float(variant.loss_per_token(piece, position_ids=positions)[0, PIECE // 2 :].mean())


apart = {name: [moved_away(variants[name], gap, PIECE // 2) for gap in GAPS] for name in ("default", "yarn", "llama3")}
whole = moved_away(model, GAPS[-1], 0)
figure = go.Figure()
for name, loss in apart.items():
    colour = theme.SERIES[list(variants).index(name)]
    figure.add_scatter(x=GAPS, y=loss, mode="lines+markers", name=name, line={"color": colour})
figure.add_scatter(
    x=GAPS[-1:], y=[whole], mode="markers", name="default, moved as a whole", marker={"color": theme.QUIET, "size": 9}
)
figure.add_vline(x=CONTEXT - PIECE, line={"color": theme.QUIET, "width": 1, "dash": "dot"})
figure.update_xaxes(
    title="gap between the halves [tokens]; right of the line distances exceed the context", tickformat=","
)
figure.update_yaxes(title="loss of the second half [nats]", rangemode="tozero")
figure.update_layout(title=f"{PIECE:,} tokens, their second half moved away", height=400, margin_t=90)

# %%
assert abs(whole - apart["default"][0]) < 1e-2
if AS_WRITTEN:
    within, *farther = apart["default"][GAPS.index(CONTEXT - PIECE) :]
    assert apart["default"][0] < within < apart["default"][0] + 0.3
    assert farther == sorted(farther) and farther[0] < within + 0.1
    assert farther[-1] > within + 3
    for name in ("yarn", "llama3"):
        assert (changes[name][wavelength < CONTEXT / 64] == 1).all() and (changes[name][slow] <= 0.5 + 1e-6).all()
        assert max(apart[name]) < apart[name][0] + 0.4

# %% [markdown]
# ## What it does to the heads
#
# The *entropy* of a query's attention says over how many keys it is spread (in nats: e to the entropy is that number of
# keys, were they equal), and the first token is the *sink* of [notebook 2](02_positional_bias.ipynb). Both are means
# over the heads of a few layers, along the text. Under the default, far beyond the context, the sink loses its hold and
# attention spreads; under every other schedule both go on as before.


# %%
def mean_along(pick, stats):
    """A statistic of the queries: mean over heads, in 32 stretches of the text."""
    return pick(stats).mean(("layer", "head")).coarsen(query=max(1, N_TOKENS // 32), boundary="trim").mean()


def along_the_text(pick, heading, **axis):
    """One line for each schedule."""
    figure = go.Figure()
    for (name, stats), colour in zip(rows.items(), theme.SERIES, strict=False):
        mean = mean_along(pick, stats)
        figure.add_scatter(x=mean["query"], y=mean, mode="lines", name=name, line={"color": colour})
    figure.add_vline(x=CONTEXT, line={"color": theme.QUIET, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="position of the query [tokens]", tickformat=",", range=[0, N_TOKENS])
    figure.update_yaxes(rangemode="tozero", **axis)
    return figure.update_layout(title=heading, height=400, margin_t=80)


def entropy(stats):
    """Entropy of each query's attention [nats]."""
    return stats["entropy"]


def to_the_first(stats):
    """Each query's attention to the first token."""
    return stats["sink_mass"].sel(sink_size=1)


along_the_text(entropy, "How widely queries spread their attention", title="entropy [nats]")

# %%
along_the_text(
    to_the_first, "How much of it the first token holds", title="attention to the first token", tickformat=".0%"
)

# %%
if AS_WRITTEN:
    for name, stats in rows.items():
        held, spread = (mean_along(pick, stats) for pick in (to_the_first, entropy))
        # The last stretch, and the one that ends with the context.
        lost, wider = float(held[-1] / held[15]), float(spread[-1] - spread[15])
        assert (lost < 0.5 and wider > 0.5) if name == "default" else (lost > 0.9 and wider < 0.1), name

# %% [markdown]
# And why does linear cost so much where nothing is long? Some heads look at the *previous* token, and only pairs that
# turn fast can tell one token back from two. Linear is the one that slows them, and it weakens those heads most. Here
# is every head of the model, on the first tokens of the text: its mean attention to the previous token as trained, and
# under each schedule.


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
# Only dynamic turns the same tokens otherwise when fewer follow them.
alone = nll | {"dynamic": variants["dynamic"].loss_per_token(tokens[:, :CONTEXT])[0]}
columns = {
    f"first {CONTEXT:,}, read alone": {name: float(loss[: CONTEXT - 1].mean()) for name, loss in alone.items()},
    f"first {CONTEXT:,} of {N_TOKENS:,}": {name: float(loss[: CONTEXT - 1].mean()) for name, loss in nll.items()},
    f"beyond {CONTEXT:,}": {name: float(loss[CONTEXT - 1 :].mean()) for name, loss in nll.items()},
    "attention to the previous token, 10 strongest heads": {
        name: float(mass[strong].mean()) for name, mass in previous.items()
    },
}
summary = pd.DataFrame(columns)
read_alone, at_once, beyond, back = (summary[name] for name in columns)
if N_TOKENS > CONTEXT:
    print(f"Beyond {CONTEXT:,} tokens {beyond.idxmin()} has the lowest loss, {beyond.idxmax()} the highest.")
for how, loss in ((f"A text of {CONTEXT:,} tokens", read_alone), (f"The start of one of {N_TOKENS:,}", at_once)):
    costs = (loss - loss["default"]).drop("default").sort_values()
    print(f"{how} costs", ", ".join(f"{cost:+.3f} ({name})" for name, cost in costs.items()), "nats per token more.")
print(f"Two halves {GAPS[-1]:,} tokens apart: a loss of", end=" ")
print(", ".join(f"{loss[-1]:.2f} ({name})" for name, loss in apart.items()), f"in place of {apart['default'][0]:.2f}.")
summary.round(3)

# %%
assert back.idxmin() == "linear"
assert [name for name, change in changes.items() if change[0] != 1] == ["linear"]
assert abs(read_alone["dynamic"] - read_alone["default"]) < 1e-4
for name, change in changes.items():
    # The fastest pair as it was; every slow pair at 2 × 8,192 tokens no farther than it was at 8,192.
    good = bool(change[0] == 1 and (change[slow] <= 0.5 + 1e-6).all())
    assert good == (name in ("dynamic", "yarn", "llama3")), name
    if AS_WRITTEN:
        assert at_once["dynamic"] > read_alone["dynamic"] + 0.05
        assert good == (at_once[name] < at_once["default"] + 0.1 and beyond[name] < beyond["default"] - 1), name

# %% [markdown]
# So the default breaks on distances, not on positions. A schedule that leaves the fastest pairs alone keeps what short
# distances are read from, and one that lowers the slow ones keeps their angles within those of the context. The good
# schedules do both, and differ in between. Dynamic costs a text within the context nothing; but it is another model for
# each length, so that what comes later changes what came before.
