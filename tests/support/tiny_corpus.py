"""Small corpora of tiny models: texts of every length, as strings or tokens."""

import numpy as np
import torch
from tiny_hooked import random_tokens, tiny_model

N_TOKENS = 48


def quiet_model(**changes):
    """A tiny model whose heads are wide enough to be silent."""
    return tiny_model(d_head=32, **changes)


def token_rows(n, longest=N_TOKENS + 20, seed=0):
    """Rows of token ids of different lengths, some longer than a corpus reads."""
    sizes = np.random.default_rng(seed).integers(5, longest, size=n)
    return [random_tokens(int(size), seed=seed + at)[0].tolist() for at, size in enumerate(sizes)]


def saved_model(directory, layers=2):
    """A tiny transformers model in a directory, for workers to load."""
    from tiny import Shape
    from tiny import tiny_model as of_transformers

    model = of_transformers("qwen3", Shape(layers=layers, bias=False))
    model.save_pretrained(directory)
    return str(directory)


def values(corpus):
    """Every number of every analysis, by name."""
    return {(a, name): v.values for a in corpus.analyses for name, v in corpus[a].data_vars.items()}


def same(one, other):
    """Raise unless two corpora hold the same numbers to the last bit."""
    one, other = values(one), values(other)
    assert one.keys() == other.keys()
    for name, numbers in one.items():
        np.testing.assert_array_equal(numbers, other[name], err_msg=str(name))


def single_thread():
    """One thread, so that last bits agree with those of a worker of one thread."""
    torch.set_num_threads(1)
