"""What tools leave in checkpoints and around models: taken where it changes nothing, else said what to do."""

import json

import pytest
import torch
from tiny import tiny_model, tokens
from transformers import MistralConfig, MistralModel

from hooks import ConfigError, HookedTransformer, WeightError
from hooks.errors import TokenizerWarning, UnknownModelError

load = HookedTransformer.from_pretrained
pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning")


def saved(tmp_path, family, **keys):
    """A tiny model on disk, with more keys in its config.json; the model and the directory."""
    theirs = tiny_model(family)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return theirs, tmp_path


@torch.no_grad()
def same(theirs, ours):
    torch.testing.assert_close(ours(tokens(20)), theirs(tokens(20)).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("llama", {"unsloth_fixed": True, "unsloth_version": "2024.11.8"}),
        ("qwen3", {"_attn_implementation_autoset": True}),
        ("gpt_neox", {"custom_pipelines": {"text-generation": {"impl": "x.P"}}}),
        ("gpt_neox", {"rotary_pct": 0.25, "partial_rotary_factor": 0.25, "rope_parameters": None}),
        ("cohere2", {"_sliding_window_pattern": 4, "use_parallel_embedding": False}),
    ],
)
def test_keys_that_nothing_reads(tmp_path, family, keys):
    theirs, directory = saved(tmp_path, family, **keys)
    if "rope_parameters" in keys:
        assert load(directory).cfg.rope.partial_rotary_factor == 0.25
    else:
        same(theirs, load(directory))


def test_a_share_that_says_something_else_is_refused(tmp_path):
    _, directory = saved(tmp_path, "gpt_neox", rope_parameters=None, rotary_pct=0.25, partial_rotary_factor=0.5)
    with pytest.raises(ConfigError, match="partial_rotary_factor"):
        load(directory)


def test_a_pattern_that_nothing_reads_must_be_the_one_in_use(tmp_path):
    _, directory = saved(tmp_path, "cohere2", layer_types=None, _sliding_window_pattern=3)
    with pytest.raises(ConfigError, match="_sliding_window_pattern=3"):
        load(directory)


def test_a_key_that_its_user_knows_to_change_nothing(tmp_path):
    theirs, directory = saved(tmp_path, "llama", my_key={"a": 1}, other_key=2)
    with pytest.raises(ConfigError, match=r"my_key=.*other_key=2.*ignore_config_keys=\('my_key', 'other_key'\)"):
        load(directory)
    with pytest.raises(ConfigError, match="other_key=2"):
        load(directory, ignore_config_keys="my_key")
    ours = load(directory, ignore_config_keys=("my_key", "other_key"))
    same(theirs, ours)
    assert "ignore_config_keys" in ours.cfg.provenance["other_key"]
    with pytest.raises(ConfigError, match="ignore_config_keys"):
        load(directory, ignore_config_keys=[3])


def test_ignoring_a_key_that_is_read_changes_nothing(tmp_path):
    theirs, directory = saved(tmp_path, "llama")
    same(theirs, load(directory, ignore_config_keys=("rms_norm_eps", "rope_parameters")))


class Wrapper(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model


class Peft(Wrapper):
    def merge_and_unload(self):
        return self.inner


def test_a_wrapped_model_says_what_to_unwrap():
    theirs = tiny_model("llama")
    with pytest.raises(UnknownModelError, match=r"wraps one: pass that one, or HookedTransformer\.attach"):
        load(Wrapper(theirs))
    with pytest.raises(UnknownModelError, match=r"merge_and_unload\(\), or HookedTransformer\.attach"):
        load(Peft(theirs))


def test_adapters_inside_the_layers():
    theirs = tiny_model("llama")
    theirs.model.layers[0].self_attn.q_proj.lora_A = torch.nn.Linear(2, 2)
    with pytest.raises(UnknownModelError, match="merge_and_unload"):
        load(theirs)


def test_an_adapter_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnknownModelError, match="PEFT adapter and no model"):
        load(tmp_path)


def test_what_a_bridge_took_apart():
    theirs = tiny_model("llama")
    theirs.model.norm = Wrapper(theirs.model.norm)
    theirs.model.norm._original_component = theirs.model.norm.inner
    with pytest.raises(UnknownModelError, match=r"TransformerBridge.*attach\(bridge\)"):
        load(theirs)


@pytest.mark.parametrize("live", [True, False])
def test_a_body_without_a_head(tmp_path, live):
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    body = MistralModel(MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0))
    body.save_pretrained(tmp_path)
    with pytest.raises(WeightError, match=r"lacks lm_head\.weight.*body of a model.*attach"):
        load(body if live else tmp_path)


def test_a_tokenizer_of_its_own_code_does_not_hold_up_its_model(tmp_path):
    theirs, directory = saved(tmp_path, "llama")
    settings = {"tokenizer_class": "MyTok", "auto_map": {"AutoTokenizer": ["tok.MyTok", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.warns(TokenizerWarning, match="without its tokenizer"):
        ours = load(directory)
    assert ours.tokenizer is None
    same(theirs, ours)
