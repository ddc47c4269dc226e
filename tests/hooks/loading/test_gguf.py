"""Reading GGUF files: back to the model they were written from, as transformers reads them, and failing closed."""

import gguf
import numpy as np
import pytest
import torch
from tiny import CLASSES, Shape, rope_parameters, tiny_model, tokens
from tiny_gguf import ARCHITECTURES, write_gguf

from hooks import ConfigError, HookedTransformer, WeightError
from hooks.errors import UnknownModelError
from hooks.families.family import PerHead
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
    constants = {"query_pre_attn_scalar": 32} if family in ("gemma2", "gemma3_text") else {}
    if family == "qwen2":
        constants["use_sliding_window"] = False  # the format has no key for it
    if family == "gemma3_text":
        rope = {"rope_type": "default", "rope_theta": 10_000.0}
        constants["layer_types"] = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
        constants["rope_parameters"] = {"full_attention": rope, "sliding_attention": rope}
    theirs = tiny_model(family, Shape(tied=tied, bias=tied, layers=7), **constants)
    ours = load(write_gguf(theirs, tmp_path / "tiny.gguf"))
    expected = load(theirs)
    assert ours.tokenizer is None
    for name in ("rope", "qk_norm", "scale", "tie_word_embeddings", "window_size"):
        assert getattr(ours.cfg, name) == getattr(expected.cfg, name), name
    for (name, mine), (_, reference) in zip(ours.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=2e-7 if "gemma" in family else 0, msg=name)
    torch.testing.assert_close(logits(ours, tokens(23)), logits(expected, tokens(23)), rtol=1e-4, atol=1e-4)


def test_gguf_constants_are_cited(tmp_path):
    theirs = tiny_model("gemma3_text", Shape(bias=False, tied=True))
    provenance = load(write_gguf(theirs, tmp_path / "tiny.gguf")).cfg.provenance
    for key, value in (("rope_local_base_freq", "10000.0"), ("_sliding_window_pattern", "6"), ("query_pre_attn", "32")):
        (text,) = (text for name, text in provenance.items() if name.startswith(key))
        assert text.startswith(value)
        assert "llama.cpp" in text


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3"])
def test_gguf_as_transformers_reads_it(family, tmp_path):
    """A quantised file, read by transformers' own loader."""
    # Its loader knows no key_length: llama's head_dim is the rotated width, qwen3's is always 128.
    head_dim = {"qwen3": 128, "gemma2": 256, "qwen2": 16}.get(family, 32)
    # phi3's class has a padding token of its own, 32,000.
    vocab = 32_064 if family == "phi3" else 97
    shape = Shape(bias=False, d_model=64, d_mlp=96, head_dim=head_dim, tied=True, vocab=vocab)
    # Nor a soft-cap, a scale, a window switch or a share that rotates: there its defaults are taken.
    more = {
        "gemma2": {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        "qwen2": {"use_sliding_window": False},
        "phi3": {"rope_parameters": rope_parameters("default", 32), "original_max_position_embeddings": 64},
    }
    model = tiny_model(family, shape, **more.get(family, {}))
    path = write_gguf(model, tmp_path / "tiny.gguf", quantised=True)
    theirs = CLASSES[family][1].from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(load(path), tokens(19)), logits(theirs.eval(), tokens(19)), rtol=1e-4, atol=1e-4)


def test_gguf_linear_rope(tmp_path):
    theirs = tiny_model("qwen3", Shape(bias=False), "linear")
    assert load(write_gguf(theirs, tmp_path / "tiny.gguf")).cfg.rope == load(theirs).cfg.rope


def test_a_factor_without_a_type_is_linear(tmp_path):
    """As llama.cpp reads it; against transformers' linear schedule."""
    theirs = tiny_model("llama", Shape(bias=False))
    path = write_gguf(theirs, tmp_path / "m.gguf", edit=lambda writer: writer.add_rope_scaling_factor(4.0))
    scaled = tiny_model("llama", Shape(bias=False), rope_parameters={**rope_parameters("linear", 32), "factor": 4.0})
    torch.testing.assert_close(logits(load(path), tokens(50)), logits(scaled, tokens(50)), rtol=1e-4, atol=1e-4)
    none = write_gguf(theirs, tmp_path / "n.gguf", edit=lambda writer: writer.add_rope_scaling_factor(0.0))
    assert load(none).cfg.rope == load(theirs).cfg.rope


@pytest.mark.parametrize(("family", "rope_type"), [("qwen3", "yarn"), ("qwen2", "yarn"), ("phi3", "longrope")])
def test_schedules_that_the_format_names(family, rope_type, tmp_path):
    def edit(writer):
        if rope_type == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(4.0)
            writer.add_rope_scaling_orig_ctx_len(16)
            writer.add_rope_scaling_yarn_beta_fast(24.0)
            writer.add_rope_scaling_yarn_beta_slow(1.5)

    more = {"use_sliding_window": False} if family == "qwen2" else {}
    theirs = tiny_model(family, Shape(bias=False), rope_type, **more)
    found = logits(load(write_gguf(theirs, tmp_path / "m.gguf", edit=edit)), tokens(50))
    torch.testing.assert_close(found, logits(theirs, tokens(50)), rtol=1e-4, atol=1e-4)


LLAMA3 = {"rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(("trained", "said"), [(32, "llama3"), (8192, "llama3"), (None, "longrope")])
def test_divisors_of_the_frequencies(trained, said, tmp_path):
    """Llama 3's files hold its schedule as one divisor a pair; transformers has the schedule itself."""
    rope = {"rope_type": "llama3", "original_max_position_embeddings": trained, **LLAMA3}
    if trained is None:  # no formula gives these: Llama 3's with other bands
        rope |= {"original_max_position_embeddings": 64, "low_freq_factor": 2.0, "high_freq_factor": 3.0}
    theirs = tiny_model("llama", Shape(bias=False), rope_parameters=rope)
    plain = 1 / 5e5 ** (torch.arange(0, 32, 2) / 32)
    divisors = (plain / theirs.model.rotary_emb.inv_freq).numpy()
    path = write_gguf(theirs, tmp_path / "m.gguf", edit=lambda w: w.add_tensor("rope_freqs.weight", divisors))
    ours = load(path)
    assert ours.cfg.rope.rope_type == said
    if said == "llama3":
        assert (ours.cfg.rope.factor, ours.cfg.rope.original_max_position_embeddings) == (8.0, trained)
    torch.testing.assert_close(logits(ours, tokens(60)), logits(theirs, tokens(60)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("divisors", "said"),
    [([1.0, 2.0], "16"), ([0.0] * 16, "above 0"), ([float("nan")] * 16, "above 0"), ([[1.0] * 16], "shape")],
)
def test_divisors_that_cannot_be(divisors, said, tmp_path):
    values = np.array(divisors, dtype=np.float32)
    path = write_gguf(
        tiny_model("llama", Shape(bias=False)),
        tmp_path / "m.gguf",
        edit=lambda w: w.add_tensor("rope_freqs.weight", values),
    )
    with pytest.raises((WeightError, ConfigError), match=said):
        load(path)


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
            assert not any(isinstance(source, PerHead) for source in row.weights.values())
