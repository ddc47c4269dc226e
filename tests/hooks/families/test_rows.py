"""Rows of the family table against transformers' config classes, old files' names of weights, and the limits."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CASES, CLASSES, GPTJ_NAMES, PARTIAL, Shape, tiny_config, tiny_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hooks import ConfigError, HookedTransformer, HookedTransformerConfig, WeightError
from hooks.errors import UnknownModelError
from hooks.families.table import FAMILIES, LIMITS, config_from_hf
from hooks.modules.activations import XIELU

pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning")
# As on the Hub: EleutherAI/pythia-70m, mistralai/Mistral-7B-v0.3, LGAI-EXAONE/EXAONE-4.0-32B (what matters of it).
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
    "vocab_size": 32768,
}
SIZES = {
    "vocab_size": 97,
    "hidden_size": 512,
    "intermediate_size": 320,
    "num_hidden_layers": 5,
    "num_attention_heads": 64,
    "max_position_embeddings": 128,
}


def little(family):
    """A config.json that says as little as it can."""
    if family == "gptj":
        named = {GPTJ_NAMES.get(name, name): value for name, value in SIZES.items()}
        return {**named, "n_head": 4, "model_type": "gptj"}
    return {**SIZES, "model_type": family}


def as_transformers_reads(config):
    """Our config of what transformers' class makes of a file, its defaults filled in by itself."""
    config_class, _ = CLASSES[config["model_type"]]
    return config_from_hf(config_class(**copy.deepcopy(config)).to_dict())  # it edits nested settings in place


def same(ours, theirs):
    """Whether two configs describe one model, however they spell its rotation."""
    layers = range(ours.n_layers)
    assert [ours.rope_for(i) for i in layers] == [theirs.rope_for(i) for i in layers]
    rest = {"provenance": {}, "rope": None, "nope_layers": ()}
    return ours.replace(**rest) == theirs.replace(**rest)


@pytest.mark.parametrize(("family", "rope_type"), CASES)
def test_the_config_survives_json(family, rope_type):
    cfg = config_from_hf(tiny_config(family, Shape(), rope_type).to_dict())
    assert HookedTransformerConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


@pytest.mark.parametrize("family", CLASSES)
def test_a_file_that_says_little_means_what_transformers_takes_it_to_mean(family):
    kv_heads = {} if family in ("gpt_neox", "gptj") else {"num_key_value_heads": 4}
    says_little = {**little(family), **kv_heads}
    ours = config_from_hf(says_little)
    assert same(ours, as_transformers_reads(says_little))
    assert all(FAMILIES[family].source in text for text in ours.provenance.values())
    assert ours.provenance


@pytest.mark.parametrize("family", [family for family in CLASSES if family not in ("hunyuan_v1_dense", "gptj")])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 12345.0},
        {"rope_theta": 12345.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
        {"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    ],
)
def test_the_old_spelling_of_the_rotation(family, rope):
    """rope_theta and rope_scaling at the top level, as files had them before version 5."""
    if family == "apertus" and "rope_scaling" not in rope:
        pytest.skip("transformers drops rope_theta where it fills in the schedule; here that is a contradiction")
    if family == "gpt_neox":
        rope = {"rotary_emb_base": rope["rope_theta"], **{k: v for k, v in rope.items() if k != "rope_theta"}}
    old = {**SIZES, "model_type": family, **rope}
    if family == "helium":
        old["num_key_value_heads"] = 4  # its default of 20 does not divide the heads here
    if family == "olmo3" and rope["rope_theta"] != 500_000.0:
        with pytest.raises(ConfigError, match="its full layers and 500000 to the sliding ones"):
            config_from_hf(old)
        return
    if family == "phi3" and "rope_scaling" in rope:
        with pytest.raises(ConfigError, match="phi3 runs default, longrope only"):
            config_from_hf(old)
        return
    assert same(config_from_hf(old), as_transformers_reads(old))


@pytest.mark.parametrize("family", PARTIAL)
def test_the_share_of_a_head_that_rotates(family):
    key = "rotary_pct" if family == "gpt_neox" else "partial_rotary_factor"
    config = {**SIZES, "num_attention_heads": 8, "head_dim": 64, "model_type": family, key: 0.75}
    if family != "gpt_neox":
        config["num_key_value_heads"] = 2
    if family in ("phi", "stablelm", "gpt_neox"):
        del config["head_dim"]
    cfg = config_from_hf(config)
    assert cfg.rope.width(cfg.d_head) == 48
    assert same(cfg, as_transformers_reads(config))


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "olmo", "exaone4"])
def test_null_is_none_and_absence_is_the_default(family):
    off = {"sliding_window": None, "attn_logit_softcapping": None, "final_logit_softcapping": None, "clip_qkv": None}
    known = FAMILIES[family].defaults.keys() | {"clip_qkv", "sliding_window"}
    config = {**SIZES, "model_type": family, **{key: None for key in off if key in known}}
    if family in ("gemma2", "exaone4"):
        config["layer_types"] = ["full_attention"] * 5
    if family == "olmo":
        del config["sliding_window"]
    cfg = config_from_hf(config)
    assert [cfg.window(i) for i in range(5)] == [None] * 5
    assert (cfg.softcap, cfg.output_logits_soft_cap, cfg.clip_qkv) == (None, -1.0, None)
    assert same(cfg, as_transformers_reads(config))


def test_pythia_from_the_hub():
    cfg = config_from_hf(PYTHIA)
    assert (cfg.rope.rope_theta, cfg.rope.width(cfg.d_head), cfg.d_head) == (10_000, 16, 64)
    assert (cfg.parallel_attn_mlp, cfg.parallel_shared_norm, cfg.gated_mlp, cfg.mlp_bias) == (True, False, False, True)
    assert set(cfg.provenance) == {"attention_bias"}


def test_mistral_from_the_hub():
    assert config_from_hf(MISTRAL).layer_types is None
    assert config_from_hf({**MISTRAL, "sliding_window": 4096}).window(7) == 4096
    absent = config_from_hf({key: value for key, value in MISTRAL.items() if key != "sliding_window"})
    assert absent.window(0) == 4096
    assert "configuration_mistral.py" in absent.provenance["sliding_window"]


def test_layers_without_rotation():
    smollm3 = config_from_hf({**SIZES, "model_type": "smollm3", "no_rope_layers": [1, 0, 1, 1, 0]})
    assert [smollm3.rope_for(i) is None for i in range(5)] == [False, True, False, False, True]
    with pytest.raises(ConfigError, match="wrong kind"):
        config_from_hf({**SIZES, "model_type": "smollm3", "no_rope_layers": [1, 0]})
    for family in ("exaone4", "cohere2"):
        cfg = config_from_hf({**SIZES, "model_type": family, "num_key_value_heads": 4})
        assert [i for i in range(5) if cfg.rope_for(i) is None] == [3]
        assert [i for i in range(5) if cfg.window(i) is None] == [3]
    plain = {"sliding_window": None, "layer_types": ["full_attention"] * 5, "num_key_value_heads": 4}
    assert config_from_hf({**SIZES, "model_type": "exaone4", **plain}).rope_for(0) is not None


def test_gpt_neox_under_the_names_of_older_files(tmp_path):
    theirs = tiny_model("gpt_neox")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head = next(name for name in tensors if name in ("lm_head.weight", "embed_out.weight"))
    tensors["embed_out.weight"] = tensors.pop(head)
    for i in range(3):
        tensors[f"gpt_neox.layers.{i}.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        tensors[f"gpt_neox.layers.{i}.attention.masked_bias"] = torch.tensor(-1e9)
        tensors[f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    ours = HookedTransformer.from_pretrained(tmp_path)
    live = HookedTransformer.from_pretrained(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), live.parameters(), strict=True))


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight", (250, 128)),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value.weight", (250, 128)),
        ("glm4", "model.layers.1.mlp.gate_up_proj.weight", (99, 40)),
        ("stablelm", "model.layers.1.self_attn.q_layernorm.norms.3.weight", (31,)),
    ],
)
def test_a_fused_weight_of_the_wrong_size_is_named(family, name, shape):
    theirs = tiny_model(family)
    module, _, leaf = name.rpartition(".")
    setattr(theirs.get_submodule(module), leaf, torch.nn.Parameter(torch.ones(shape)))
    with pytest.raises(WeightError, match=name):
        HookedTransformer.from_pretrained(theirs)


def test_constants_of_xielu_are_held_against_the_checkpoint():
    theirs = tiny_model("apertus")
    HookedTransformer.from_pretrained(theirs)
    theirs.model.layers[1].mlp.act_fn.beta.fill_(0.6)
    with pytest.raises(WeightError, match=r"layers\.1\.mlp\.act_fn\.beta.*0\.6.*built with 0\.5"):
        HookedTransformer.from_pretrained(theirs)


def test_xielu_starts_where_its_paper_does():
    act = XIELU(torch.float64)
    x = torch.tensor([-2.0, -0.1, 0.0, 0.3, 2.0], dtype=torch.float64)
    below = 0.8 * (torch.expm1(x) - x) + 0.5 * x
    torch.testing.assert_close(act(x), torch.where(x > 0, 0.8 * x**2 + 0.5 * x, below), atol=1e-6, rtol=1e-6)


def test_partial_heads_are_refused_where_transformers_rotates_whole_ones():
    with pytest.raises(ConfigError, match="whole heads"):
        config_from_hf({**SIZES, "model_type": "mistral", "partial_rotary_factor": 0.5})


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit_is_raised_as_its_sentence(what):
    assert what in CONFIG_MAPPING_NAMES
    assert what not in FAMILIES
    with pytest.raises(UnknownModelError) as raised:
        config_from_hf({**SIZES, "model_type": what})
    assert LIMITS[what] in str(raised.value)
    assert "attach" in str(raised.value)


# Weights whose rows do not lie together in the checkpoint.
COPIED = {"gpt_neox": ("q_proj", "k_proj", "v_proj"), "stablelm": ("q_norm", "k_norm")}


@pytest.mark.parametrize("family", CLASSES)
def test_a_live_model_shares_its_memory_fused_projections_included(family):
    theirs = tiny_model(family)
    ours = HookedTransformer.from_pretrained(theirs)
    shared = {p.untyped_storage().data_ptr() for p in theirs.parameters()}
    copied = {name for name, p in ours.named_parameters() if p.untyped_storage().data_ptr() not in shared}
    assert copied == {n for n, _ in ours.named_parameters() if any(part in n for part in COPIED.get(family, ()))}


def test_an_edit_of_a_fused_projection_is_an_edit_of_q_k_and_v():
    theirs = tiny_model("phi3")
    ours = HookedTransformer.from_pretrained(theirs)
    before = [ours.blocks[0].attn.get_parameter(f"{t}_proj.weight").clone() for t in "qkv"]
    with torch.no_grad():
        theirs.model.layers[0].self_attn.qkv_proj.weight.mul_(2.0)
    for t, was in zip("qkv", before, strict=True):
        assert torch.equal(ours.blocks[0].attn.get_parameter(f"{t}_proj.weight"), 2 * was)
