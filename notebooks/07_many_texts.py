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
# # 7. Many texts: is it the model, or was it the text?
#
# [Notebook 2](02_positional_bias.ipynb) took Gemma 3 270M apart on one text: sinks in the full layers, heads that look
# near, heads whose scores are mostly distance. A head may do in one text what it does in no other. Here the same model
# reads many documents: **which of those findings hold over texts, and how surely?**

# %%
import ast
import sysconfig
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import plotly.io as pio

from hooks import HookedTransformer
from interp import capture, head_summary, measure_corpus, plots, standard_text

pio.templates.default = "ropescope"

N_TOKENS = 768
# What the words say is asserted in the cell after them: at any length, or in its digits at the length written for.
AS_WRITTEN = N_TOKENS == 768
N_DOCUMENTS = 36 if AS_WRITTEN else 5

# %% [markdown]
# ## The documents
#
# Two kinds that every Python installation has: topics of its language reference, and the docstrings of a module of its
# standard library one after another. Those long enough to fill the tokens are taken, evenly from both kinds.


# %%
def module_docstrings():
    """The docstrings of each module of the standard library, as one text a module."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        yield f"module {path.stem}", "\n\n".join(filter(None, map(ast.get_docstring, named)))


def evenly(texts):
    """Long texts by name, as many as are wanted of one kind, evenly from all of them."""
    long = [(name, text) for name, text in texts if len(text) > 5 * 768]
    step = len(long) // (N_DOCUMENTS // 2)
    return long[::step][: N_DOCUMENTS // 2]


documents = evenly((f"topic {name}", topics[name]) for name in sorted(topics)) + evenly(module_docstrings())
print(len(documents), "documents:", ", ".join(name for name, _ in documents[:3]), "…", documents[-1][0])

# %% [markdown]
# `measure_corpus` reads them one after another and keeps a record of each; stopped and run again, it goes on with those
# that are left. With `workers=` it does so in several processes.

# %%
scratch = tempfile.TemporaryDirectory()
place = Path(scratch.name) / "documents.corpus"
texts = [text for _, text in documents]
corpus = measure_corpus("gemma3-270m", texts, place, n_tokens=N_TOKENS, analyses=("head_summary", "positional_bias"))
mean, bias = corpus.mean("head_summary"), corpus.mean("positional_bias")
kinds = np.asarray(corpus.plan.model.layer_types)
FULL, SLIDING = (np.flatnonzero(kinds == kind) for kind in ("full_attention", "sliding_attention"))
print(f"{len(corpus)} texts, {int(corpus.texts['tokens'].sum()):,} tokens, {corpus.loss:.2f} nats a token")

# %% [markdown]
# Every number below is of all documents together: the sum over their queries or pairs, divided by how many those are.
# Its interval is what another choice of documents would have given: they are drawn with replacement, 2,000 times, and
# the middle 95 % of the results are kept. Each interval is for one head; of 72 of them, three or four may miss.
#
# ## Sinks
#
# Notebook 2: the first token draws many times its share, more so in the full layers. One point is one head.

# %%
plots.head_intervals(mean, "first_token_mass", title="Attention to the first token")


# %%
def count(name, layers, *, above=None, below=None):
    """Heads of these layers whose whole interval lies above, or below, a number."""
    low, high = mean[f"{name}_low"].values[layers], mean[f"{name}_high"].values[layers]
    return int((low > above).sum()) if below is None else int((high < below).sum())


for kind, layers in (("full", FULL), ("sliding", SLIDING)):
    held = mean["first_token_mass"].values[layers]
    print(
        f"{kind:>8} layers: {held.mean():.0%} on average; whole interval above 30 % in "
        f"{count('first_token_mass', layers, above=0.3)} of {held.size} heads, below it in "
        f"{count('first_token_mass', layers, below=0.3)}"
    )

# %% [markdown]
# That holds: ten of the twelve full heads are sinks whatever the documents, and 17 of the 60 sliding ones. What is left
# between, four heads, these 36 documents do not decide.

# %%
held = {kind: mean["first_token_mass"].values[layers].mean() for kind, layers in (("full", FULL), ("sliding", SLIDING))}
if AS_WRITTEN:
    assert held["full"] > held["sliding"]
    assert [count("first_token_mass", layers, above=0.3) for layers in (FULL, SLIDING)] == [10, 17]
    assert [count("first_token_mass", layers, below=0.3) for layers in (FULL, SLIDING)] == [1, 40]

# %% [markdown]
# ## Near and far
#
# The full layers' attention by distance, with the 95 % band of each head.

# %%
plots.show(bias.isel(layer=FULL), title="Full layers: mean attention of a pair by its distance")

# %%
plots.head_intervals(mean, "local_mass", title="Attention to the nearest 64 keys")

# %%
for kind, layers in (("full", FULL), ("sliding", SLIDING)):
    print(
        f"{kind:>8} layers: surely more than half of the attention on the nearest 64 keys in "
        f"{count('local_mass', layers, above=0.5)} of {len(layers) * 4} heads, surely less in "
        f"{count('local_mass', layers, below=0.5)}"
    )

# %% [markdown]
# Two thirds of the sliding layers' heads are local over texts, and no head of the full layers surely is.

# %%
if AS_WRITTEN:
    assert count("local_mass", FULL, above=0.5) == 0
    assert 0.6 < count("local_mass", SLIDING, above=0.5) / 60 < 0.7

# %% [markdown]
# ## How much of the score is distance?
#
# Positional R² of each text, averaged over texts: the share of the score's variance that lies between distances.

# %%
plots.head_intervals(mean, "positional_r2", title="Share of the score's variance that distance explains")

# %%
for kind, layers in (("full", FULL), ("sliding", SLIDING)):
    r2 = mean["positional_r2"].values[layers]
    print(
        f"{kind:>8} layers: {r2.min():.0%} to {r2.max():.0%}, depending on the head; surely more than half in "
        f"{count('positional_r2', layers, above=0.5)} heads"
    )

# %% [markdown]
# In all but a few heads distance explains less than half of the scores, over texts as in one.

# %%
if AS_WRITTEN:
    assert count("positional_r2", FULL, above=0.5) == 0 and count("positional_r2", SLIDING, above=0.5) == 3

# %% [markdown]
# ## Induction
#
# A head that attends to what followed an earlier copy of the current token, on natural text, where tokens are copies
# for many reasons. Is there one head that does it most, in whatever text?

# %%
induction = mean["induction"].values
layer, head = (int(i) for i in np.unravel_index(induction.argmax(), induction.shape))
plots.head_intervals(mean, "induction", title="Attention to what followed", highlight={(layer, head): "most"})

# %%
low, high = (mean[f"induction_{edge}"].values for edge in ("low", "high"))
others = np.delete(high.ravel(), layer * high.shape[1] + head)
each = corpus["head_summary"]["induction"].values.reshape(len(corpus), -1)
first = int((each.argmax(1) == layer * high.shape[1] + head).sum())
print(f"L{layer} H{head}: {induction[layer, head]:.0%}, interval {low[layer, head]:.0%} to {high[layer, head]:.0%};")
print(f"the next head's interval ends at {others.max():.0%}. It comes first in {first} of {len(corpus)} texts.")

# %% [markdown]
# There is. These are the texts that it does most in, and how they begin.

# %%
top = corpus.top_texts("head_summary", "induction", layer, head, n=5).to_dataframe()
top["text"] = [documents[int(number)][0] for number in top["text"]]
top[["text", "value", "opening"]].round(3)

# %%
if AS_WRITTEN:
    assert low[layer, head] > others.max() and first == len(corpus) == 36

# %% [markdown]
# ## Where texts differ
#
# An interval says how well a mean is known; it gets narrow with many texts, however far they lie apart. This is how far
# they lie apart, in the heads where it is most.

# %%
spread = corpus.spread("head_summary")
plots.spread_over_texts(spread, name="first_token_mass", most=16)

# %% [markdown]
# So what would one text have said? Take the text of notebook 2, of the same length, and count the heads for which it
# lies outside of the corpus' interval.

# %%
alone = head_summary(capture(HookedTransformer.from_pretrained("gemma3-270m"), standard_text(), n_tokens=N_TOKENS))
names = ("first_token_mass", "local_mass", "positional_r2", "induction")
outside = {
    name: int(((alone[name] < mean[f"{name}_low"]) | (alone[name] > mean[f"{name}_high"])).sum()) for name in names
}
for name, n in outside.items():
    off = float(abs(alone[name] - mean[name]).max())
    print(f"{name.replace('_', ' '):>17}: {n} of {alone[name].size} heads outside, by at most {off:.2f}")

# %% [markdown]
# ## The answer

# %%
sinks = [count("first_token_mass", layers, above=0.3) for layers in (FULL, SLIDING)]
off = float(abs(alone["first_token_mass"] - mean["first_token_mass"]).max())
print(f"{len(corpus)} documents of at most {N_TOKENS} tokens, {mean['entropy'].size} heads; with their whole interval:")
print(f"  sinks: {sinks[0]} of {len(FULL) * 4} full heads and {sinks[1]} of {len(SLIDING) * 4} sliding ones;")
local = [count("local_mass", layers, above=0.5) for layers in (FULL, SLIDING)]
print(f"  local: {local[1]} of the sliding heads, {local[0]} of the full ones;")
print(f"  L{layer} H{head} attends most to what followed: {low[layer, head]:.0%} to {high[layer, head]:.0%}.")
print(f"One text alone is off by up to {off:.2f} in a head's attention to the first token.")

# %% [markdown]
# What notebook 2 found about kinds of layers holds over texts. A single head's number from a single text mostly lies
# outside of the interval that many texts give: it is a number of that text.

# %%
if AS_WRITTEN:
    assert min(outside[name] for name in ("first_token_mass", "local_mass")) > alone["entropy"].size / 2

# %% [markdown]
# Back to [the first look](01_first_look.ipynb).
