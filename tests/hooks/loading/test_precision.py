"""The type of the weights: what the config says, or the widest that is there; and no cast that makes infinities."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CLASSES, Shape, tiny_model, tokens

from hooks import ConfigError, HookedTransformer, WeightError

load = HookedTransformer.from_pretrained
pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning")


@pytest.fixture
def directory(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


def edit(directory, tensors=None, **config):
    """Rewrite some tensors and some keys of a saved model; a key that is None is taken out."""
    held = load_file(directory / "model.safetensors")
    for name, change in (tensors or {}).items():
        held[name] = change(held[name])
    save_file(held, directory / "model.safetensors")
    path = directory / "config.json"
    new = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in new.items() if value is not None}))


HEAD = "lm_head.weight"


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_config_says_which(directory, key, name):
    edit(directory, {HEAD: torch.Tensor.bfloat16}, **{"dtype": None, "torch_dtype": None, key: name})
    ours = load(directory)
    theirs = CLASSES["llama"][1].from_pretrained(directory)
    assert ours.dtype == theirs.dtype == getattr(torch, name)
    with torch.no_grad():
        scale = float(theirs(tokens(9)).logits.abs().max())
        difference = (theirs.eval()(tokens(9)).logits - ours(tokens(9))).abs().max()
    assert float(difference) <= (1e-5 if name == "float32" else 0.05) * scale


@pytest.mark.parametrize("first", [True, False])
def test_without_a_word_the_widest_counts_wherever_it_stands(directory, first):
    narrow = ["model.embed_tokens.weight", HEAD] if first else ["model.norm.weight"]
    edit(directory, dict.fromkeys(narrow, torch.Tensor.bfloat16), dtype=None)
    assert load(directory).dtype == torch.float32


def test_two_halves_that_hold_different_values_need_float32(directory):
    names = list(load_file(directory / "model.safetensors"))
    casts = {name: torch.Tensor.half if i % 2 else torch.Tensor.bfloat16 for i, name in enumerate(names)}
    edit(directory, casts, dtype=None)
    assert load(directory).dtype == torch.float32


def test_float64_is_kept_or_refused_but_not_dropped(directory):
    edit(directory, {HEAD: torch.Tensor.double})
    with pytest.raises(WeightError, match=r"lm_head\.weight.*float64.*dtype='float64'"):
        load(directory)
    assert load(directory, dtype="float32").dtype == torch.float32
    assert load(directory, dtype="float64").dtype == torch.float64
    edit(directory, dtype=None)
    assert load(directory).dtype == torch.float64


@pytest.mark.parametrize(
    ("stored", "asked", "value"),
    [(torch.float32, "float16", 7e4), (torch.bfloat16, "float16", 7e4), (torch.float64, "float32", 1e39)],
)
@pytest.mark.parametrize("live", [True, False])
def test_a_cast_that_makes_a_weight_infinite_names_it(directory, stored, asked, value, live):
    def change(weight):
        weight = weight.to(stored)
        weight[0] = value
        return weight

    edit(directory, {"model.norm.weight": change}, dtype=None)
    source = directory
    if live:
        source = CLASSES["llama"][1].from_pretrained(directory, dtype=stored)
    with pytest.raises(WeightError, match=rf"model\.norm\.weight.*infinite in {asked}"):
        load(source, dtype=asked)
    wide = "float64" if stored == torch.float64 else "float32"
    assert load(source, dtype=wide).ln_final.weight[0].item() == pytest.approx(value, rel=0.01)


def test_a_value_that_is_already_infinite_is_called_damage(directory):
    def change(weight):
        weight[0] = torch.inf
        return weight

    edit(directory, {"model.norm.weight": change})
    with pytest.raises(WeightError, match="damaged"):
        load(directory, dtype="float16")


def test_a_live_model_of_two_types_keeps_the_wider():
    theirs = tiny_model("llama", dtype=torch.bfloat16)
    theirs.lm_head.float()
    assert load(theirs).dtype == torch.float32


def test_fp8_is_called_quantised(directory):
    def quantise(weight):
        return weight.to(torch.float8_e4m3fn)

    edit(directory, {"model.layers.0.self_attn.q_proj.weight": quantise})
    with pytest.raises(WeightError, match=r"q_proj\.weight.*float8_e4m3fn.*quantised.*attach"):
        load(directory)
    edit(directory, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    with pytest.raises(ConfigError, match=r"quantization_config \('fp8'\).*quantised.*attach"):
        load(directory)


@pytest.mark.parametrize("said", ["int8", "float8_e4m3fn", 7, {"a": 1}])
def test_a_type_that_nothing_computes_in(directory, said):
    edit(directory, dtype=said)
    with pytest.raises(ConfigError, match="dtype"):
        load(directory)
    with pytest.raises(ConfigError, match="dtype"):
        load(directory, dtype=said)


def test_auto_means_the_widest(directory):
    edit(directory, {HEAD: torch.Tensor.bfloat16}, dtype="auto")
    assert load(directory).dtype == torch.float32


def test_a_tied_file_may_keep_its_matrix_under_either_name(tmp_path):
    theirs = tiny_model("llama", Shape(tied=True))
    theirs.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    held[HEAD] = held.pop("model.embed_tokens.weight")
    save_file(held, tmp_path / "model.safetensors")
    ours = load(tmp_path)
    assert ours.unembed.weight is ours.embed.weight
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens(9)), theirs(tokens(9)).logits, rtol=1e-4, atol=1e-4)
