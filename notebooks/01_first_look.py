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
# # 1. First look: what happens to a query on its way to the score?
#
# You know attention as `softmax(q·k / √d)`. In today's models two things happen to q and k after the projection and
# before that product: **QK-norm** rescales every query and key, and **RoPE** rotates them by an angle that grows with
# their position. Most tools show q and k once, somewhere along this way. Here each step has a hook on both sides.
#
# This notebook loads a real model, follows one layer's q and k through both steps, and then reaches in:
# **does the norm's learned scale matter, and how exactly is it set?**

# %%
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import torch
from plotly.subplots import make_subplots

from hooks import HookedTransformer
from interp import standard_text
from interp.plots import theme

pio.templates.default = "ropescope"
pd.set_option("display.max_colwidth", None)

N_TOKENS = 512

# %% [markdown]
# ## A model
#
# Gemma 3 270M comes from a Python wheel, so nothing is downloaded. Its config says what the layers do with position:
# most are *sliding* (a query sees only the last few hundred keys), the others are *full* (it sees everything before
# it), and the two kinds rotate at different speeds.

# %%
model = HookedTransformer.from_pretrained("gemma3-270m")
cfg = model.cfg
print(f"{cfg.n_layers} layers, {cfg.n_heads} query heads on {cfg.n_kv_heads} kv head, d_head {cfg.d_head}")
for kind in ("sliding_attention", "full_attention"):
    layers = [layer for layer in range(cfg.n_layers) if cfg.layer_type(layer) == kind]
    rope, spec = cfg.rope_for(layers[0]), cfg.attention_spec(layers[0])
    print(f"{kind:>18}: layers {layers}, window {spec.window}, rope_theta {rope.rope_theta:,.0f}")
print(f"QK-norm: {cfg.qk_norm.kind}, {cfg.qk_norm.position}, one norm per {cfg.qk_norm.scope}")

# %% [markdown]
# ## Its hooks
#
# A *hook* is a named point in the forward pass where a tensor can be read or replaced. There is one per tensor, with
# aliases for "before" and "after" each step. Here are those of one full layer. The last pair of columns matter: what
# fires only in *full mode* is an n × n tensor, and is computed only if you hook it.

# %%
LAYER = 5
attention = f"blocks.{LAYER}.attn."
hooks = [info for name, info in model.registry.infos.items() if name.startswith(attention + "hook_")]
pd.DataFrame(
    {
        "hook": [info.name.removeprefix(attention) for info in hooks],
        "also called": [", ".join(alias.removeprefix(attention) for alias in info.aliases) for info in hooks],
        "axes": [info.axes for info in hooks],
        "fires": [info.fires for info in hooks],
        "the tensor": [info.meaning for info in hooks],
    }
).set_index("hook")

# %% [markdown]
# ## Both sides of the norm
#
# `run_with_cache` runs the model and keeps the tensors whose names match, here q and k at every stage. The *length* of
# q and k decides how peaked attention is: twice as long, twice the scores. QK-norm takes this freedom away from
# the residual stream: it divides every q and k by its root mean square and multiplies it by a gain per feature that was
# learned once and for all.

# %%
tokens = model.to_tokens(standard_text().content)[:, :N_TOKENS]
with torch.no_grad():
    _, cache = model.run_with_cache(tokens, names_filter=["blocks.*.attn.hook_[qk]*", f"{attention}hook_attn_scores"])

# Lengths of all tokens but the first, which is special (notebook 2), in the first head of each layer.
lengths = {
    (x, stage): torch.stack(
        [cache[f"hook_{x}_{stage}_norm", layer][0, 1:, 0].norm(dim=-1) for layer in range(cfg.n_layers)]
    )
    for x in "qk"
    for stage in ("pre", "post")
}

# %%
figure = make_subplots(
    cols=2, subplot_titles=["queries, first head", "keys"], shared_yaxes=True, horizontal_spacing=0.04
)
for (x, stage), length in lengths.items():
    low, middle, high = length.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=1)
    figure.add_scatter(
        x=torch.arange(cfg.n_layers),
        y=middle,
        error_y={"array": high - middle, "arrayminus": middle - low, "thickness": 3, "width": 0},
        mode="markers",
        marker={"color": theme.FULL if stage == "pre" else theme.SLIDING, "size": 8},
        name={"pre": "before QK-norm", "post": "after QK-norm"}[stage] + ": median, and 90 % of tokens",
        showlegend=x == "q",
        row=1,
        col="qk".index(x) + 1,
    )
figure.update_xaxes(title="layer")
figure.update_yaxes(title="length ‖·‖ of a token's vector", col=1)
figure.update_yaxes(tickvals=[5, 10, 20, 50, 100, 200, 500], type="log")
figure.update_layout(height=400, margin_t=90, legend_y=1.12)

# %% [markdown]
# Before the norm, how long a query is depends on the layer and on the token; after it, on the gain and only a little on
# the token.

# %% [markdown]
# ## Both sides of the rotation
#
# RoPE treats a head's features as pairs, each a point in a plane, and turns the point of the token at position p by the
# angle p · `inv_freq`. Every pair has its own speed. Two things follow, and the figure shows both: a rotation keeps all
# lengths, and the product of a rotated q and k depends on the *difference* of their positions only.
#
# Drawn is one pair of the keys, the one whose keys point most nearly the same way before rotation. Whatever the token
# says, its key looks alike there; after rotation this pair is a clock that tells where the token stands.

# %%
rope = cfg.rope_for(LAYER)
frequencies = model.rotary[cfg.layer_type(LAYER)].frequencies()[0]
wavelength = 2 * torch.pi / frequencies
before, after = (cache[f"hook_k_{side}_rope", LAYER][0, :, 0] for side in ("pre", "post"))
points = {"before RoPE": before.unflatten(-1, (2, -1)), "after RoPE": after.unflatten(-1, (2, -1))}

alike = points["before RoPE"].mean(0).norm(dim=0) / points["before RoPE"].pow(2).sum(1).mean(0).sqrt()
# A gain of zero switches a pair off; slow pairs do not get round in so short a text.
turning = (wavelength > 16) & (wavelength < N_TOKENS / 2)
PAIR = int((alike.nan_to_num() * turning).argmax())

figure = make_subplots(cols=2, subplot_titles=list(points), shared_yaxes=True, horizontal_spacing=0.04)
for column, pair in enumerate(points.values(), start=1):
    turned = torch.arange(len(pair)) / wavelength[PAIR] % 1
    marker = {"color": turned, "colorscale": theme.LAYER_SCALE, "size": 5, "showscale": column == 2}
    marker["colorbar"] = {"title": "position,<br>in turns", "thickness": 10, "outlinewidth": 0}
    x, y = pair[:, 0, PAIR], pair[:, 1, PAIR]
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, showlegend=False, row=1, col=column)
reach = float(before.unflatten(-1, (2, -1))[:, :, PAIR].norm(dim=-1).max()) * 1.1
figure.update_xaxes(range=[-reach, reach], title=f"feature {PAIR}")
figure.update_yaxes(range=[-reach, reach])
figure.update_yaxes(title=f"feature {PAIR + cfg.d_head // 2}", col=1)
figure.update_layout(height=460, margin_t=40)

# %%
print(f"pair {PAIR} turns once in {wavelength[PAIR]:.1f} tokens")
print(f"largest change of a key's length by the rotation: {(after.norm(dim=-1) - before.norm(dim=-1)).abs().max():.1e}")

# %% [markdown]
# ## The score, by hand
#
# What leaves the rotation enters the score. `hook_q_final` and `hook_k_final` name it in any model, whatever its steps.
# Their product, scaled, is what `hook_attn_scores` holds (hooking that one is what made an n × n tensor, fine at this
# length).

# %%
q, k = cache["hook_q_final", LAYER][0], cache["hook_k_final", LAYER][0, :, 0]
by_hand = torch.einsum("qhd,kd->hqk", q, k) * cfg.attention_spec(LAYER).scale
inside = cache["hook_attn_scores", LAYER][0]
visible = inside.isfinite()
score_error = float((by_hand - inside)[visible].abs().max())
print(f"{int(visible.sum()):,} scores from {inside[visible].min():.1f} to {inside.max():.1f}")
print(f"largest difference from q·k·scale by hand: {score_error:.1e}")

# %% [markdown]
# ## One edit
#
# A hook may return a tensor, which then takes the place of the old one. After QK-norm all queries have about the length
# that the gain gives them, so multiplying q there by a factor is the same as training the gain to another size: above 1
# attention becomes sharper, below 1 flatter. If training has set that size well, any change costs loss.
#
# The alias `blocks.*.attn.hook_q_post_norm` reaches all layers at once; the edit ends with the `with` block.

# %%
FACTORS = (0.25, 0.5, 0.71, 0.84, 1.0, 1.19, 1.41, 2.0, 4.0)
losses = []
for factor in FACTORS:
    with model.hooks(fwd_hooks=[("blocks.*.attn.hook_q_post_norm", lambda q, hook, by=factor: q * by)]):
        losses.append(float(model.loss_per_token(tokens).mean()))
untouched = losses[FACTORS.index(1.0)]

figure = go.Figure()
figure.add_scatter(x=FACTORS, y=losses, mode="lines+markers", line={"color": theme.SLIDING})
figure.add_hline(y=untouched, line={"color": theme.QUIET, "width": 1, "dash": "dot"})
figure.update_xaxes(type="log", title="factor on every query after QK-norm", tickvals=FACTORS, ticktext=FACTORS)
figure.update_yaxes(title="loss [nats per token]")
figure.update_layout(title=f"The same weights, sharper or flatter: loss on {N_TOKENS} tokens", height=380)

# %% [markdown]
# ## The answer


# %%
def reach_of(length):
    """Largest median length of a layer over the smallest."""
    medians = length.median(dim=1).values
    return float(medians.max() / medians.min())


best = FACTORS[losses.index(min(losses))]
print("Longest layer over shortest, by the median token's length:")
for x, name in (("q", "queries"), ("k", "keys")):
    print(f"  {name}: {reach_of(lengths[x, 'pre']):.0f} × before QK-norm, {reach_of(lengths[x, 'post']):.1f} × after.")
print(f"The score is q·k·scale of what leaves the rotation, to {score_error:.1e}.")
print(f"Of the factors tried on every query, {best:g} gives the lowest loss: {min(losses):.3f} nats per token.")
for factor in (0.5, 2.0):
    print(f"  × {factor:g} costs {losses[FACTORS.index(factor)] - untouched:+.2f} nats.")

# %% [markdown]
# So the scale that QK-norm learns is no detail: it is the temperature of every head's softmax, and a hook on one side
# of one step is enough to turn it.
#
# Next: [what the model does with distance](02_positional_bias.ipynb), [how large scores can
# get](03_score_ranges.ipynb), [32,768 tokens](04_long_sequences.ipynb) and [stretching a
# context](05_stretching_the_context.ipynb). On your own text: `ropescope report your.txt` writes all of it to one page.
