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
# # 9. The explorer: three questions to one map
#
# A head's attention over 8,192 tokens is a picture of 67 million pairs. `ropescope explore` and `cap.explore()` show it
# as a map that one zooms, from the whole text to single tokens, computed from q and k as one looks. Whatever the page
# shows, it asked the same core that answers Python, so each view below is also an address that the page opens.
# **Where does this head look, which far pair does it find, and would it find it if positions were stretched?**

# %%
import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from hooks import HookedTransformer
from interp import capture, standard_text
from interp.explorer.questions import Explorer
from interp.plots import theme

pio.templates.default = "ropescope"

N_TOKENS = 8_192
LAYER, HEAD = 5, 1

# %%
model = HookedTransformer.from_pretrained("gemma3-270m")
cap = capture(model, standard_text(), n_tokens=N_TOKENS, layers=LAYER, loss=False)
n = len(cap.positions)
explorer = Explorer(cap)
facts = explorer.ask({"kind": "overview"}).said
print(f"{facts['model']}, layer {LAYER}: {facts['layers'][0]['kind']} attention, {n:,} tokens, {n * n:,} pairs a head")

# %% [markdown]
# In JupyterLab, `cap.explore()` in a cell of its own shows the page; from a terminal,
# `ropescope explore --model gemma3-270m --tokens 8192 --layers 5` does. Here the same questions are asked in Python.
#
# ## Where does it look?
#
# The whole text at the coarsest scale: a pixel is the mean, or the largest, of all the pairs that it covers.


# %%
def view(title, *pictures, signed=False):
    """Pictures side by side: attention by its logarithm, a difference as it is."""
    figure = make_subplots(1, len(pictures), subplot_titles=[name for name, *_ in pictures], horizontal_spacing=0.1)
    for column, (_, values, keys, queries) in enumerate(pictures, 1):
        top = float(np.nanmax(np.abs(values)))
        z = values if signed else np.log10(np.maximum(values, 1e-6))
        colours = theme.DIVERGING_SCALE if signed else theme.SHADE_SCALE
        span = {"zmin": -top, "zmax": top} if signed else {"zmin": -5, "zmax": 0}
        bar = theme.BAR | {"title": "" if signed else "log₁₀"}
        trace = go.Heatmap(
            z=z, x=keys, y=queries, colorscale=colours, colorbar=bar, showscale=column == len(pictures), **span
        )
        figure.add_trace(trace, 1, column)
    figure.update_xaxes(title="key [tokens]", constrain="domain", showgrid=False)
    figure.update_yaxes(title="query [tokens]", autorange="reversed", showgrid=False)
    return figure.update_layout(title=title, height=460, margin={"t": 76})


picture = {"layer": LAYER, "head": HEAD}
scale = facts["top_scale"]
whole = explorer.ask({"kind": "tile", **picture, "scale": scale, "row": 0, "column": 0}).arrays
places = np.arange(whole["mean"].shape[0]) * scale
pixels = f"of the {scale} × {scale} pairs of a pixel"
view(
    f"Layer {LAYER}, head {HEAD}: the whole text",
    (f"mean {pixels}", whole["mean"], places, places),
    (f"largest {pixels}", whole["max"], places, places),
).show()

# %% [markdown]
# The mean shows the first token, which takes most, and what is near. The largest shows what the mean hides: single
# pairs, some of them far apart, that get nearly all of a query's attention, and short lines of them.
#
# ## Which far pair does it find?
#
# Follow the largest value down: among the pixels far from the diagonal (and not in the first column, the sink), take
# the one with the largest pair in it, and look at its pairs one by one. No step estimates anything.

# %%
far = np.subtract.outer(places, places) > n // 8
far[:, 0] = False
row, column = np.unravel_index(np.nanargmax(np.where(far, whole["max"], np.nan)), far.shape)
queries, keys = ([int(at * scale), int(min((at + 1) * scale, n))] for at in (row, column))
pairs = explorer.ask({"kind": "window", **picture, "scale": 1, "queries": queries, "keys": keys}).arrays["mean"]
i, j = np.unravel_index(np.nanargmax(pairs), pairs.shape)
query, key = queries[0] + int(i), keys[0] + int(j)
cell = explorer.ask({"kind": "cell", **picture, "query": query, "key": key})
attention, distance = float(cell.arrays["pattern"][0]), cell.said["distance"]
found = f"h={LAYER}.{HEAD}&q={query}&k={key}&at={key + 0.5},{query + 0.5},0.04"


def sentence(index, around=6):
    """A token in its sentence."""
    words = cap.str_tokens
    before, after = "".join(words[max(index - around, 0) : index]), "".join(words[index + 1 : index + 1 + around])
    return f"{before} ⟦{words[index]}⟧ {after}".replace("\n", " ")


print(f"attention {attention:.3f} over {distance:,} tokens")
print(f"query {query:,}: {sentence(query)}")
print(f"key   {key:,}: {sentence(key)}")
print(f"in the page: #{found}")

# %% [markdown]
# The query is a token that stood in the text before; the key is what followed it there: an induction head. Around the
# pair the same holds for its neighbours, a line parallel to the diagonal, as long as the two passages agree.

# %%
reach = min(24, query, key, n - 1 - query, n - 1 - key)
around = {"queries": [query - reach, query + reach + 1], "keys": [key - reach, key + reach + 1]}
near = explorer.ask({"kind": "window", **picture, "scale": 1, **around}).arrays["mean"]
axes = np.arange(*around["keys"]), np.arange(*around["queries"])
view("The pair and its neighbours, pair by pair", ("attention", near, *axes)).show()

# %% [markdown]
# ## Would it find it if positions were stretched?
#
# Linear scaling by 4 squeezes all distances to a quarter. The queries and keys are those that the model had; they are
# rotated anew, and every row gets its own softmax.

# %%
variant = {"rope": {"rope_type": "linear", "factor": 4.0}}
changed = explorer.ask(
    {"kind": "window", **picture, "view": "difference", "variant": variant, "scale": 1, **around}
).arrays["mean"]
view("What linear scaling by 4 changes around the pair", ("change of attention", changed, *axes), signed=True).show()

after = explorer.ask({"kind": "cell", **picture, "query": query, "key": key, "variant": variant}).arrays
stretched = float(after["pattern"][0])
kept = explorer.ask({"kind": "row", "heads": [[LAYER, HEAD]], "query": query, "variant": variant}).arrays["values"]
other = int(np.nanargmax(kept))
print(f"attention of the pair: {attention:.3f} → {stretched:.3f}; its query's largest is now token {other:,}: "
      f"{sentence(other)}")  # fmt: skip
print(f"in the page: #h={LAYER}.{HEAD}&v=difference&w=rope:rope_type=linear;factor=4&q={query}&k={key}")

# %% [markdown]
# The pair keeps what it had, and its neighbours change little: this head goes by what was said, not by how far away it
# was said. The same question in the page: the panel "What if", and then "Show the difference".

# %% [markdown]
# ## The answer

# %%
first = float(explorer.summary["first_token_mass"].sel(head=HEAD).item())
print(f"on the mean {first:.0%} of its attention goes to the first token")
print(f"one query gives {attention:.1%} to a token {distance:,} tokens before it, which followed the same words")
print(f"with positions squeezed to a quarter it gives it {stretched:.1%}")
np.testing.assert_allclose(pairs[i, j], cap.pattern[LAYER, HEAD, query, key], atol=1e-5)
