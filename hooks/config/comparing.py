"""In which settings two configs compute differently."""

import json
from collections.abc import Mapping
from typing import Any

# Where a model runs, how it is called, what is said of it, how it was drawn and what its tokenizer puts before a text
# do not decide what it computes on tokens.
ASIDE = frozenset({"device", "model_name", "provenance", "seed", "default_prepend_bos", "tokenizer_prepends_bos"})


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
