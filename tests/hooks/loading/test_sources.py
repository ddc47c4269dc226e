"""Loading from a live model or a directory: sharing memory, and refusing whatever is not whole."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CLASSES, Shape, tiny_model, tokens

from hooks import ConfigError, HookedTransformer, RopeConfig, WeightError
from hooks.errors import TokenizerWarning, UnknownModelError
from hooks.families.family import Part
from hooks.families.table import FAMILIES
from hooks.loading.weights import adopt_weights

load = HookedTransformer.from_pretrained
UNFUSED = ("llama", "qwen3", "olmo2", "gemma3_text", "hunyuan_v1_dense")  # every weight is a tensor of its own
pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning")


@torch.no_grad()
def logits(model, ids):
    out = model(ids)
    return getattr(out, "logits", out)


@pytest.fixture
def llama():
    return tiny_model("llama", Shape(tied=True))


@pytest.fixture
def directory(llama, tmp_path):
    llama.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(directory, edit):
    """Rewrite model.safetensors through `edit(tensors)`."""
    tensors = load_file(directory / "model.safetensors")
    tensors = edit(tensors) or tensors
    save_file(tensors, directory / "model.safetensors")


# Live models


@pytest.mark.parametrize("family", UNFUSED)
@pytest.mark.parametrize("tied", [True, False])
def test_a_live_model_shares_every_weight(family, tied):
    theirs = tiny_model(family, Shape(tied=tied))
    ours = load(theirs)
    shared = {p.data_ptr() for p in theirs.parameters()}
    assert {p.data_ptr() for p in ours.parameters()} == shared
    assert not ours.training
    before = logits(ours, tokens(9))
    with torch.no_grad():
        theirs.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    assert not torch.equal(before, logits(ours, tokens(9)))


def test_a_live_model_keeps_its_own_gradients(llama):
    load(llama)(tokens(7)).sum().backward()
    assert all(p.grad is None for p in llama.parameters())


def test_dtype_and_rope_on_the_way_in(llama):
    ours = load(llama, dtype="bfloat16", rope=RopeConfig(rope_type="linear", factor=2.0))
    assert ours.dtype == torch.bfloat16
    assert ours.cfg.dtype == torch.bfloat16
    assert ours.cfg.rope == RopeConfig("linear", rope_theta=10_000.0, factor=2.0, max_position_embeddings=64)
    with pytest.raises(ConfigError, match="int8"):
        load(llama, dtype="int8")


@pytest.mark.parametrize(
    "options", [{"device": "gpu"}, {"device": "cuda:97"}, {"dtype": "int8"}, {"dtype": torch.int64}]
)
def test_a_device_or_dtype_that_cannot_be_is_named(llama, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        HookedTransformer.from_pretrained(llama, **options)


def test_only_transformers_models_are_taken():
    with pytest.raises(UnknownModelError, match="Linear"):
        load(torch.nn.Linear(2, 2))
    with pytest.raises(UnknownModelError, match="int"):
        load(7)


# Directories


@pytest.mark.parametrize("family", CLASSES)
def test_a_directory(family, tmp_path):
    theirs = tiny_model(family)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path), tokens(11)), logits(load(theirs), tokens(11)))


def test_a_sharded_directory(llama, tmp_path):
    llama.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(logits(load(str(tmp_path)), tokens(11)), logits(load(llama), tokens(11)))
    next(tmp_path.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(WeightError, match="-of-"):
        load(tmp_path)


def test_the_language_model_of_a_multimodal_gemma(tmp_path):
    theirs = tiny_model("gemma3_text", Shape(tied=True))
    weights = {f"language_model.{name}": w for name, w in theirs.state_dict().items() if name != "lm_head.weight"}
    weights["vision_tower.vision_model.post_layernorm.weight"] = torch.ones(3)
    save_file({name: w.contiguous() for name, w in weights.items()}, tmp_path / "model.safetensors")
    text = theirs.config.to_dict()
    outer = {"model_type": "gemma3", "text_config": text, "vision_config": {}, "mm_tokens_per_image": 4}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    assert torch.equal(logits(load(tmp_path), tokens(11)), logits(load(theirs), tokens(11)))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"}, "lacks model.norm.weight"),
        (lambda t: t.update({"model.layers.0.extra.weight": torch.ones(2)}), "no place.*layers.0.extra"),
        (lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.ones(2)}), "no place.*layers.9"),
        (lambda t: t.update({"model.norm.weight": torch.ones(41)}), r"\(41,\).*\(40,\)"),
        (lambda t: t["model.layers.2.self_attn.k_proj.weight"].__setitem__((0, 0), torch.nan), "k_proj.*1 values"),
        (lambda t: t["model.layers.2.self_attn.k_proj.bias"].__setitem__(0, torch.inf), "k_proj.bias.*NaN or inf"),
        (lambda t: t.update({"model.norm.weight": torch.ones(40, dtype=torch.int8)}), "int8"),
        (lambda t: t.update({"lm_head.weight": torch.ones(97, 40)}), "lm_head.weight differs"),
    ],
)
def test_each_damage_has_its_own_error(directory, edit, said):
    change(directory, edit)
    with pytest.raises(WeightError, match=said):
        load(directory)


def test_a_tied_head_may_be_repeated(directory, llama):
    change(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    ours = load(directory)
    assert ours.unembed.weight is ours.embed.weight


def test_parts_of_a_fused_tensor(llama):
    """A family that keeps q, k and v in one tensor is a row too: views of it share its memory."""
    widths = [128, 64, 64]

    def part(index):
        return Part("{p}layers.{i}.qkv.weight", lambda fused, cfg: fused.split(widths)[index])

    fused_names = {f"blocks.{{i}}.attn.{t}_proj.weight": part(i) for i, t in enumerate("qkv")}
    row = dataclasses.replace(FAMILIES["llama"], weights={**FAMILIES["llama"].weights, **fused_names})
    tensors = dict(llama.state_dict())
    for i in range(3):
        parts = [tensors.pop(f"model.layers.{i}.self_attn.{t}_proj.weight") for t in "qkv"]
        tensors[f"model.layers.{i}.qkv.weight"] = torch.cat(parts)
    expected = load(llama)
    ours = HookedTransformer(expected.cfg, _empty=True)
    adopt_weights(ours, row, tensors, "a fused checkpoint")
    assert torch.equal(logits(ours, tokens(9)), logits(expected, tokens(9)))
    assert ours.blocks[0].attn.q_proj.weight.data_ptr() == tensors["model.layers.0.qkv.weight"].data_ptr()


def test_a_row_without_biases_refuses_biases(tmp_path):
    theirs = tiny_model("qwen3")
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "attention_bias": False}))
    with pytest.raises(WeightError, match=r"no place.*bias"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 300, 0.5, 0.99])
def test_truncated_safetensors(directory, kept):
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(WeightError, match=r"model.safetensors is not a whole safetensors file"):
        load(directory)


def test_pickled_weights_are_not_read(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(WeightError, match=r"pickled.*save_pretrained"):
        load(directory)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(WeightError, match=r"no \*\.safetensors"):
        load(directory)


@pytest.mark.parametrize(("text", "error"), [("{", ConfigError), ("[]", ConfigError), (None, UnknownModelError)])
def test_a_damaged_config(directory, text, error):
    (directory / "config.json").unlink()
    if text is not None:
        (directory / "config.json").write_text(text)
    with pytest.raises(error, match=r"config\.json"):
        load(directory)


def test_a_damaged_tokenizer(directory):
    (directory / "tokenizer.json").write_text("{")
    with pytest.warns(TokenizerWarning, match=rf"{directory}.*Expecting property name"):
        assert load(directory).tokenizer is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gemma3-27m", "did you mean gemma3-270m"),
        ("no-such-thing", "gemma3-270m, smollm2-135m"),
        ("./nowhere/at-all", "not a file or directory"),
        ("nobody/no-such-model-anywhere", "cannot fetch.*network"),
        ("missing.gguf", "not a file"),
    ],
)
def test_unknown_sources(source, said, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownModelError, match=said):
        load(source)


def test_a_file_of_another_kind(directory):
    with pytest.raises(UnknownModelError, match="no known kind"):
        load(directory / "config.json")
