"""Reading GGUF files: back to the model they were written from, as transformers reads them, and failing closed."""

import pytest
import torch
from tiny import CLASSES, Shape, tiny_model, tokens
from tiny_gguf import ARCHITECTURES, write_gguf

from hooks import ConfigError, HookedTransformer, WeightError
from hooks.errors import UnknownModelError
from hooks.families.table import FAMILIES
from hooks.loading.gguf import halves_from_pairs, read_gguf

load = HookedTransformer.from_pretrained
pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning")


@torch.no_grad()
def logits(model, ids):
    out = model(ids)
    return getattr(out, "logits", out)


@pytest.mark.parametrize("family", ARCHITECTURES)
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


def test_every_gguf_row_has_plain_names():
    """The prepared cache writes a GGUF's tensors under transformers' names, so each must have exactly one."""
    for row in FAMILIES.values():
        if row.gguf:
            assert all(isinstance(source, str) for source in row.weights.values())
