"""Beyond 32k tokens: the last positions of a long sequence equal transformers'."""

import pytest
import torch
from tiny import Shape, tiny_model, tokens

from hooks import HookedTransformer

N, LAST = 33_001, 64


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:position .* is beyond")
@pytest.mark.parametrize(("family", "rope_type"), [("qwen3", "llama3"), ("gemma3_text", "yarn")])
def test_the_last_positions_of_33001_tokens(family, rope_type):
    shape = Shape(heads=2, kv_heads=1, head_dim=32, layers=2, bias=False)
    theirs = tiny_model(family, shape, rope_type)
    ours = HookedTransformer.from_pretrained(theirs)
    theirs.set_attn_implementation("sdpa")
    ids = tokens(N, batch=1)
    kept = {}
    with torch.no_grad():
        reference = theirs(ids, use_cache=False, logits_to_keep=LAST).logits
        name = f"blocks.{shape.layers - 1}.hook_resid_post"
        hooks = [(name, lambda t, hook: kept.update(last=t[:, -LAST:].clone()))]
        ours.run_with_hooks(ids, return_type=None, fwd_hooks=hooks)
        logits = ours.unembed_residual(kept["last"])
    assert (logits - reference).abs().max() <= 2e-5 * reference.abs().max()
