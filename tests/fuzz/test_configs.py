"""Mutated config.json files of twenty families: a named error, or the logits of transformers.

A mutated config is read by transformers too, which builds a model of it with random weights; both are given to us. What
transformers itself refuses, or computes no finite logits of, needs a named error or any model from us.
"""

import json

import mutating
import pytest
import torch
from safetensors.torch import save_file
from tiny import CLASSES, MAX_POSITIONS, Shape, random_model, tiny_config

from hooks import HookedTransformer
from hooks.errors import RopescopeError

FAMILIES = [
    *("llama", "qwen3", "olmo2", "gemma3_text", "hunyuan_v1_dense", "mistral", "qwen2", "olmo", "olmo3", "gemma2"),
    *("smollm3", "phi3", "phi", "stablelm", "cohere", "cohere2", "gpt_neox", "exaone4", "granite", "nemotron"),
]
TOLERANCE = 1e-4  # of the largest logit; scales that a mutation made large lose digits on both sides
LONGEST_ERROR = 3000  # characters
LARGEST = 400  # of a size that transformers is asked to build
SIZES = [
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_window_layers", "no_rope_layer_interval"),
]
FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0}
ROTATIONS = [
    *(None, {}, LINEAR, {"type": "linear", "factor": 2.0}, {"type": "linear", **LINEAR}, YARN, LLAMA3, LONG),
    *({"rope_type": "dynamic", "factor": 2.0}, {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}, {"type": "su"}),
    *({"rope_type": "default"}, {"rope_theta": 500.0}, {**LINEAR, "rope_theta": 77.0}, {"rope_type": "proportional"}),
    *({"rope_type": None}, {**YARN, "attention_factor": 0.5}, {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}),
    *({**YARN, "truncate": False}, {**YARN, "beta_fast": 8, "beta_slow": 2}, {"factor": 2.0}, {"alpha": 10.0}),
    *({"full_attention": LINEAR}, {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}),
    *({"full_attention": None, "sliding_attention": LINEAR}, {"mrope_section": [2, 3, 3], "rope_type": "default"}),
    *({**LINEAR, "partial_rotary_factor": 0.5}, {"sliding_attention": {"rope_theta": 100.0}}, {**LINEAR, "alpha": 3.0}),
]
# Keys that some family or tool writes; most families do not know them.
FOREIGN = {
    "rope_scaling": ROTATIONS,
    "rope_parameters": ROTATIONS,
    "rope_theta": [100.0, 1e6, 10_000, None, 1.0, "1e4"],
    "partial_rotary_factor": [0.5, 1.0, 0.25, None, 0.0, 2.0],
    "rotary_pct": [0.5, 1.0],
    "rope_local_base_freq": [100.0, None],
    "original_max_position_embeddings": [16, 64, 128],
    "max_position_embeddings": [8, 16, 2**40, None],
    "sliding_window": [None, 3, 7, 1, 0, 4096, -1],
    "use_sliding_window": [True, False],
    "max_window_layers": [0, 1, 2, 28],
    "layer_types": [
        ["full_attention"] * 2,
        ["sliding_attention"] * 2,
        ["full_attention", "sliding_attention"],
        None,
        [],
    ],
    "no_rope_layers": [[0, 1], [1, 1], [0, 0], [1]],
    "no_rope_layer_interval": [1, 2, 3],
    "attention_bias": [True, False, None],
    "mlp_bias": [True, False],
    "use_bias": [True, False],
    "qk_layernorm": [True, False],
    "use_qk_norm": [True, False],
    "clip_qkv": [0.5, None, 1e9],
    "attn_logit_softcapping": [None, 2.0, 0.0],
    "final_logit_softcapping": [None, 2.0],
    "query_pre_attn_scalar": [1, 7, 100.0],
    "hidden_act": ["silu", "gelu", "gelu_new", "relu", "relu2", "swish", "gelu_fast", "tanh", "mish", None],
    "hidden_activation": ["gelu_pytorch_tanh", "gelu", "silu", None],
    "num_key_value_heads": [1, 2, 4, None, 3],
    "head_dim": [16, 8, None, 7, 32],
    "tie_word_embeddings": [True, False, None],
    "use_parallel_residual": [True, False],
    "logit_scale": [0.5, 1.0, None],
    "embedding_multiplier": [1.0, 2.0],
    "residual_multiplier": [1.0, 0.5],
    "logits_scaling": [1.0, 3.0],
    "attention_multiplier": [1.0, 0.1],
    "rms_norm_eps": [1e-3, 0.1, 1e-12, 0.0, "1e-6", 1],
    "layer_norm_eps": [1e-3, 0.1, 1],
    "norm_eps": [1e-3],
    "sliding_window_pattern": [1, 2, 3],
    "_sliding_window_pattern": [1, 2],
    "use_cache": [False],
    "pretraining_tp": [2],
    "attention_dropout": [0.5],
    "quantization_config": [{"quant_method": "fp8"}, None, {}],
    "torch_dtype": ["float32"],
    "model_type": ["llama", "qwen2", "Llama", "gpt2", None, "qwen3_next"],
    "architectures": [["X"], None],
    "use_bidirectional_attention": [True, False],
    "rope_interleaved": [True, False],
    "num_experts": [8],
    "unheard_of": [1],
}


def mutated(rng, config):
    """The config with one to three things about it changed."""
    config = dict(config)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.randrange(4)
        if kind <= 1:
            key = rng.choice(list(FOREIGN) if kind else [key for key in FOREIGN if key in config] or ["rope_theta"])
            config[key] = rng.choice(FOREIGN[key])
        elif kind == 2:
            config = mutating.changed(rng, config)
        else:
            config.pop(rng.choice(list(config)), None)
    return config


def theirs_of(family, config, seed):
    """The model that transformers builds of a config, or None."""
    if config.get("model_type") != family or any(not _small(config.get(key)) for key in SIZES):
        return None
    if config.get("vocab_size") == 0:  # which it builds, for no token at all
        return None
    config_class, _ = CLASSES[family]
    try:
        return random_model(family, config_class.from_dict(dict(config)), seed=seed)
    except Exception:  # whatever it is, it is not ours
        return None


def _small(size):
    return size is None or (isinstance(size, int) and abs(size) <= LARGEST) or not isinstance(size, int | float)


@torch.no_grad()
def logits_of(model, ids):
    """Transformers' logits, or None."""
    try:
        found = model(input_ids=ids, use_cache=False).logits
    except Exception:
        return None
    return found if bool(torch.isfinite(found).all()) else None


@torch.no_grad()
def outcome(directory, family, config, base, seed):
    """What came of one config: (word, complaint or None)."""
    theirs = theirs_of(family, config, seed)
    weights = base if theirs is None else theirs.state_dict()
    (directory / "config.json").write_text(mutating.as_json(config))
    save_file({name: tensor.clone() for name, tensor in weights.items()}, directory / "model.safetensors")
    n = (9, 23, MAX_POSITIONS + 7)[seed % 3]
    ids = torch.randint(
        int(theirs.config.vocab_size) if theirs else 1, (1, n), generator=torch.Generator().manual_seed(1)
    )
    expected = None if theirs is None else logits_of(theirs, ids)
    try:
        ours = HookedTransformer.from_pretrained(directory, dtype="float32")
        found = ours(ids)
    except RopescopeError as error:
        return (
            ("named errors", None)
            if len(str(error)) < 3000
            else ("faults", f"an error of {len(str(error))} characters")
        )
    if expected is None:
        return "refused or not finite in transformers, read here", None
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-3))
    return "equal to transformers", None if error <= TOLERANCE else f"logits are off by {error:.1e}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mutated_config_is_refused_by_name_or_read_as_transformers_reads_it(family, tmp_path, rng, draws, tally):
    shape = Shape(layers=2, head_dim=16, d_model=24, d_mlp=20, vocab=31)
    config = tiny_config(family, shape)
    base = random_model(family, config).state_dict()
    whole = [json.loads(config.to_json_string(use_diff=diff)) for diff in (True, False)]
    wrong = []
    for seed in range(draws(8, 250)):
        hf = mutated(rng, {"model_type": family, **rng.choice(whole)})
        try:
            word, complaint = outcome(tmp_path, family, hf, base, seed)
        except Exception as error:
            word, complaint = "faults", f"{type(error).__name__}: {error}"
        tally[word] = tally.get(word, 0) + 1
        if complaint:
            changes = {key: value for key, value in hf.items() if value != whole[1].get(key)}
            wrong.append(f"{complaint[:300]}: {changes} without {sorted(whole[1].keys() - hf.keys())}")
    assert not wrong, "\n".join(wrong)
