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
# their position. Here each step has a hook on both sides.
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
# What the words say is asserted in the cell after them: at any length, or in its digits at the length written for.
AS_WRITTEN = N_TOKENS == 512

# %% [markdown]
# ## A model
#
# Gemma 3 270M was installed as a Python wheel, so nothing is downloaded here. Its config says what the layers do with
# position: most are *sliding* (a query sees only the last few hundred keys), the others are *full* (it sees everything
# before it), and the two kinds rotate at different speeds.

# %%
model = HookedTransformer.from_pretrained("gemma3-270m")
cfg = model.cfg
print(f"{cfg.n_layers} layers, {cfg.n_heads} query heads on {cfg.n_kv_heads} kv head, d_head {cfg.d_head}")
for kind in ("sliding_attention", "full_attention"):
    layers = [layer for layer in range(cfg.n_layers) if cfg.layer_type(layer) == kind]
    rope, spec = cfg.rope_for(layers[0]), cfg.attention_spec(layers[0])
    print(f"{kind:>18}: layers {layers}, window {spec.window}, rope_theta {rope.rope_theta:,.0f}")
sliding, full = (cfg.attention_spec(layer).window for layer in (0, 5))
assert [cfg.layer_type(layer) for layer in range(cfg.n_layers)].count("sliding_attention") > cfg.n_layers / 2
assert sliding == 512 and full is None
assert cfg.rope_for(0).rope_theta != cfg.rope_for(5).rope_theta
print(f"QK-norm: {cfg.qk_norm.kind}, {cfg.qk_norm.position}, one norm per {cfg.qk_norm.scope}")

# %% [markdown]
# ## Its hooks
#
# A *hook* is a named point in the forward pass where a tensor can be read or replaced. There is one per tensor, with
# aliases for "before" and "after" each step. Here are those of one full layer. What fires only in *full mode* is an
# n × n tensor, and is computed only if you hook it; in *rows mode* the same comes a block of rows at a time.

# %%
LAYER = 5
attention = f"blocks.{LAYER}.attn."
hooks = [info for name, info in model.registry.infos.items() if name.startswith(attention + "hook_")]
assert cfg.layer_type(LAYER) == "full_attention"
assert all((info.axes == "batch head query key") == (info.fires in ("full mode", "rows mode")) for info in hooks)
assert sum(info.fires == "full mode" for info in hooks) == 2
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
# a query decides how peaked its attention is: twice as long, twice the scores. QK-norm takes this freedom away from
# the residual stream: it divides every q and k by its root mean square and multiplies it by a gain per feature that was
# learned once and for all.

# %%
tokens = model.to_tokens(standard_text().content)[:, :N_TOKENS]
with torch.no_grad():
    _, cache = model.run_with_cache(tokens, names_filter=["blocks.*.attn.hook_[qk]*", f"{attention}hook_attn_scores"])

norm, unnormed = model.blocks[LAYER].attn.q_norm, cache["hook_q_pre_norm", LAYER]
root_mean_square = unnormed.pow(2).mean(-1, keepdim=True).add(cfg.qk_norm.eps).sqrt()
gain = norm.weight.detach() + cfg.qk_norm.unit_offset
torch.testing.assert_close(cache["hook_q_post_norm", LAYER], unnormed / root_mean_square * gain)

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
# Before the norm, how long a query is depends on the layer and on the token. After it the gain sets the scale, and
# tokens still differ, for the gain weighs the features that a token uses: the longest twentieth of a layer's queries is
# 1.24 to 1.89 times as long as the shortest, where it was 1.37 to 6.55 times before.

# %%
spread = {key: length.quantile(0.95, dim=1) / length.quantile(0.05, dim=1) for key, length in lengths.items()}
for (x, stage), ratio in spread.items():
    print(f"{x} {stage:>4} norm: 95 % token over 5 % token {ratio.min():.2f} to {ratio.max():.2f}, by layer")
assert all(spread[x, "post"].max() < spread[x, "pre"].max() for x in "qk")
# With all gains 1 every token would be equally long.
assert all(spread[x, "post"].min() > 1.01 for x in "qk")
if AS_WRITTEN:
    assert [f"{spread['q', 'post'].min():.2f}", f"{spread['q', 'post'].max():.2f}"] == ["1.24", "1.89"]
    assert [f"{spread['q', 'pre'].min():.2f}", f"{spread['q', 'pre'].max():.2f}"] == ["1.37", "6.55"]

# %% [markdown]
# ## Both sides of the rotation
#
# RoPE treats a head's features as pairs, each a point in a plane, and turns the point of the token at position p by the
# angle p · `inv_freq`. Every pair has its own speed. Two things follow: a rotation keeps all lengths, and the product
# of a rotated q and k depends on the *difference* of their positions only, so that a text moved by 1,000 tokens has
# the same scores. Both are measured below the figure.
#
# Drawn is one pair of the keys: of those that turn at a readable speed, the one whose keys point most nearly the same
# way before rotation. Whatever the token says, its key looks alike there; after rotation this pair is a clock that
# tells where in its turn the token stands.

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
stretched = (after.norm(dim=-1) - before.norm(dim=-1)).abs().max() / before.norm(dim=-1).max()
print(f"largest change of a key's length by the rotation, of the longest key's: {stretched:.1e}")
assert stretched < 1e-5

later = torch.arange(1_000, 1_000 + tokens.shape[1])
with torch.no_grad():
    _, moved = model.run_with_cache(tokens, position_ids=later, names_filter=[f"{attention}hook_attn_scores"])
scores, scores_later = (run["hook_attn_scores", LAYER][0] for run in (cache, moved))
change = (scores_later - scores)[scores.isfinite()].abs().max()
print(f"largest change of a score when all positions grow by 1,000: {change:.1e}")
assert change < 1e-2 and scores[scores.isfinite()].std() > 1

# The clock: from the angle of a rotated key alone, its position within the turn.
angle = torch.atan2(points["after RoPE"][:, 1, PAIR], points["after RoPE"][:, 0, PAIR])
offset = torch.polar(torch.ones(len(angle)), angle - torch.arange(len(angle)) * frequencies[PAIR])
error = (offset / offset.mean()).angle().abs() / frequencies[PAIR]
print(f"the clock is right to {error.median():.1f} tokens for half of them, to {error.quantile(0.95):.0f} for 95 %")
assert error.quantile(0.95) < wavelength[PAIR] / 4  # by chance it would be almost half a turn

# %% [markdown]
# ## The score, by hand
#
# What leaves the rotation enters the score. `hook_q_final` and `hook_k_final` name it in any model, whatever its steps.
# Their product, scaled, is what `hook_attn_scores` holds (hooking that one is what made an n × n tensor, fine at this
# length).

# %%
q, k = cache["hook_q_final", LAYER][0], cache["hook_k_final", LAYER][0, :, 0]
by_hand = torch.einsum("qhd,kd->hqk", q, k) * cfg.attention_spec(LAYER).scale
assert cfg.attention_spec(LAYER).softcap is None
inside = cache["hook_attn_scores", LAYER][0]
visible = inside.isfinite()
score_error = float((by_hand - inside)[visible].abs().max())
print(f"{int(visible.sum()):,} scores from {inside[visible].min():.1f} to {inside.max():.1f}")
print(f"largest difference from q·k·scale by hand: {score_error:.1e}")
assert score_error < 1e-4

# %% [markdown]
# ## One edit
#
# A hook may return a tensor, which then takes the place of the old one. Multiplying q after QK-norm by a factor is the
# same as giving the gain another size: above 1 attention becomes sharper, below 1 flatter. If training has set that
# size well, any other costs loss.
#
# The alias `blocks.*.attn.hook_q_post_norm` reaches all layers at once; the edit ends with the `with` block.

# %%
FACTORS = (0.25, 0.5, 0.71, 0.84, 1.0, 1.19, 1.41, 2.0, 4.0)
losses = []
for factor in FACTORS:
    with model.hooks(fwd_hooks=[("blocks.*.attn.hook_q_post_norm", lambda q, hook, by=factor: q * by)]):
        losses.append(float(model.loss_per_token(tokens).mean()))
untouched = losses[FACTORS.index(1.0)]
assert float(model.loss_per_token(tokens).mean()) == untouched  # nothing is left of the edits
spreads = [torch.distributions.Categorical(logits=inside * factor).entropy().mean() for factor in FACTORS]
assert spreads == sorted(spreads, reverse=True)  # the larger the factor, the sharper

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
assert all(reach_of(lengths[x, "post"]) < reach_of(lengths[x, "pre"]) for x in "qk")
if AS_WRITTEN:  # a shorter text may like another factor better
    assert best == 1.0

# %% [markdown]
# So the scale that QK-norm learns is no detail: it is the temperature of every head's softmax, the size that training
# gave it is the best of those tried, and a hook on one side of one step is enough to turn it.
#
# Next: [what the model does with distance](02_positional_bias.ipynb), [how large scores can
# get](03_score_ranges.ipynb), [32,768 tokens](04_long_sequences.ipynb) and [stretching a
# context](05_stretching_the_context.ipynb). On your own text: `ropescope report --text your.txt` writes one page.
