"""In which settings two configs compute differently."""

import json
from collections.abc import Mapping
from typing import Any

# Where a model runs, how it is called, what is said of it, how it was drawn, what its tokenizer puts before a text and
# which points TransformerLens' tools have switched on do not decide what it computes on tokens; nor does the number of
# logits, which is d_vocab whether it is said or not.
ASIDE = frozenset({"device", "model_name", "provenance", "seed", "default_prepend_bos", "tokenizer_prepends_bos"})
ASIDE |= {"use_attn_in", "use_attn_result", "use_hook_mlp_in", "use_split_qkv_input", "d_vocab_out"}


def differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the settings that decide what a model computes and differ; none where two models compute alike.

    Args:
        a: What ``HookedTransformerConfig.to_dict`` gives, or the same read back from JSON.
        b: The other.

    Returns:
        The names, in the order of ``a``. A setting that one side lacks counts as None there.
    """
    a, b = (json.loads(json.dumps(dict(x))) for x in (a, b))
    return tuple(name for name in {**a, **b} if name not in ASIDE and a.get(name) != b.get(name))
