"""capture keeps what run_with_cache shows, stage by stage, and refuses what the model does not have."""

import hashlib

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hooks import HookedTransformer, HookedTransformerConfig, QKNormConfig, RopeConfig
from hooks.errors import InputError, StageError, TextError, TokenizerError
from interp.analyses.position.losses import loss_by_position
from interp.captures import capture
from interp.texts.texts import standard_text

N_LAYERS, N_HEADS, N_KV, D_HEAD, D_VOCAB = 4, 4, 2, 32, 97


def tiny(**changes):
    settings = {
        "d_model": 48,
        "d_head": D_HEAD,
        "n_layers": N_LAYERS,
        "n_ctx": 4096,
        "n_heads": N_HEADS,
        "n_key_value_heads": N_KV,
        "d_mlp": 40,
        "d_vocab": D_VOCAB,
        "act_fn": "silu",
        "gated_mlp": True,
        "normalization_type": "RMS",
        "rope": RopeConfig(rope_type="default", rope_theta=10_000.0),
        "qk_norm": QKNormConfig(),
        "layer_types": ("sliding_attention", "full_attention") * 2,
        "window_size": 13,
        "nope_layers": (3,),
        "seed": 5,
        "initializer_range": 0.3,
        **changes,
    }
    model = HookedTransformer(HookedTransformerConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_norm." in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def word_tokenizer():
    words = sorted({word for word in standard_text().content.split() if len(word) < 12})[: D_VOCAB - 2]
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<bos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>")


def random_tokens(n, seed=0):
    return torch.randint(0, D_VOCAB, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def cap(model):
    return capture(model, random_tokens(71))


@pytest.mark.parametrize("position", ["before_rope", "after_rope"])
def test_every_stage_is_the_hook_of_that_name(position):
    model = tiny(qk_norm=QKNormConfig(position=position), clip_qkv=1.5, clip_position="norm")
    tokens = random_tokens(33)
    stages = ("pre_clip", "post_clip", "pre_norm", "post_norm", "pre_rope", "post_rope")
    cap = capture(model, tokens, stages=stages)
    _, cache = model.run_with_cache(tokens[None])
    for layer in range(N_LAYERS):
        there = stages if layer != 3 else stages[:4]
        for stage in (*there, "final"):
            torch.testing.assert_close(cap.q(layer, stage), cache[f"hook_q_{stage}", layer][0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(cap.k(layer, stage), cache[f"hook_k_{stage}", layer][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cap.v(layer), cache["hook_v_final", layer][0], rtol=1e-4, atol=1e-4)


def test_stages_are_listed_in_the_order_of_computation(cap):
    assert cap.stages(0) == ("pre_norm", "pre_rope", "final")
    assert cap.stages(3) == ("pre_norm", "final")
    after = capture(tiny(qk_norm=QKNormConfig(position="after_rope")), random_tokens(5))
    assert after.stages(0) == ("pre_rope", "pre_norm", "final")


def test_loss_and_shapes(model, cap):
    tokens = random_tokens(71)
    torch.testing.assert_close(cap.loss, model.loss_per_token(tokens)[0])
    assert cap.q(0).shape == (71, N_HEADS, D_HEAD)
    assert cap.k(0, "pre_norm").shape == (71, N_KV, D_HEAD)
    assert cap.tokens.tolist() == tokens.tolist()
    assert cap.str_tokens == [str(i) for i in tokens.tolist()]
    assert not cap.q(0).requires_grad


def test_constants_are_the_layers_own(model, cap):
    constants = cap.constants(1)
    assert torch.equal(constants.gain_q, model.blocks[1].attn.q_norm.effective_gain())
    v, w_o = torch.randn(N_HEADS, 5, D_HEAD), model.blocks[1].attn.W_O
    assert constants.w_o.shape == (N_HEADS, D_HEAD, D_HEAD)
    torch.testing.assert_close((v @ constants.w_o).norm(dim=-1), (v @ w_o).norm(dim=-1))
    np.testing.assert_allclose(constants.inv_freq, 10_000.0 ** (-np.arange(0, D_HEAD, 2) / D_HEAD), rtol=1e-6)
    assert cap.constants(3).inv_freq is None
    assert cap.spec(0).window == 13
    assert cap.spec(1).window is None


@pytest.mark.parametrize(
    ("stage", "said"),
    [("pre_rope", "no such step"), ("pre_clip", "no such step"), ("pre_nrom", "did you mean 'pre_norm'")],
)
def test_a_stage_that_the_layer_lacks_raises(cap, stage, said):
    with pytest.raises(StageError, match=said):
        cap.q(3, stage)


def test_stages_asked_for_by_name_must_exist_somewhere(model):
    with pytest.raises(StageError, match="no layer of this model has a stage 'pre_clip'"):
        capture(model, random_tokens(5), stages=("pre_clip",))
    plain = tiny(qk_norm=None, rope=None, nope_layers=())
    assert capture(plain, random_tokens(5)).stages(0) == ("final",)


def test_chosen_layers_only(model):
    cap = capture(model, random_tokens(9), layers=[2, 0])
    assert cap.layers == (0, 2)
    with pytest.raises(StageError, match="holds 0, 2"):
        cap.q(1)
    with pytest.raises(StageError, match="layers are 0 to 3"):
        capture(model, random_tokens(9), layers=[4])
    with pytest.raises(StageError, match="no layer"):
        capture(model, random_tokens(9), layers=[])
    with pytest.raises(StageError, match="no layer"):
        cap.statistics(layers=[])


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ([], TextError),
        ([3], TextError),
        ([3, D_VOCAB], InputError),
        ([-1, 3], InputError),
        ([0.5, 1.0], InputError),
        ([[[1, 2], [3, 4]]], InputError),
        ([[1, 2], [0.5, 4]], InputError),
        (None, InputError),
        (" \n ", TextError),
        ("a lone \ud800 surrogate", TextError),
        (["one", "two"], TokenizerError),
        ([[1, 2], [3]], TextError),
    ],
)
def test_what_cannot_be_read_raises(model, tokens, error):
    with pytest.raises(error):
        capture(model, tokens)


def test_without_loss_nothing_runs_after_the_last_layer(model, cap):
    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_pre", _never)]):
        early = capture(model, random_tokens(71), layers=[1, 0], loss=False)
    assert early.layers == (0, 1)
    assert torch.equal(early.q(1), cap.q(1))
    assert not len(early.loss)
    with pytest.raises(StageError, match="loss=False"):
        loss_by_position(early)


def _never(tensor, hook):
    raise AssertionError(f"{hook.name} ran")


def test_fewer_than_two_tokens_of_many_raise(model):
    for n in (-5, 0, 1):
        with pytest.raises(InputError, match=f"n_tokens={n}"):
            capture(model, random_tokens(9), n_tokens=n)


def test_one_stage_and_one_layer_need_no_list(model):
    one = capture(model, random_tokens(9), stages="pre_norm", layers=2)
    assert (one.layers, one.stages(2)) == ((2,), ("pre_norm", "final"))


def test_training_after_a_capture_does_not_reach_into_it():
    model = tiny(learned_sinks=True, rope=RopeConfig(rope_theta=10_000.0, learnable=True))
    tokens = random_tokens(17)
    cap, expected = capture(model, tokens), capture(model, tokens).statistics()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.7)
    xr.testing.assert_equal(cap.statistics(), expected)
    assert not cap.spec(0).sinks.requires_grad
    changed = capture(model, tokens)
    for name in ("gain_q", "gain_k", "inv_freq", "w_o"):
        assert not torch.equal(getattr(cap.constants(1), name), getattr(changed.constants(1), name)), name


def test_statistics_are_computed_once_and_aligned(cap, monkeypatch):
    first = cap.statistics()
    monkeypatch.setattr("interp.tensors.capture_data.attention_statistics", None)
    again = cap.statistics([1, 0])
    assert again["layer"].values.tolist() == [1, 0]
    assert first["count"].dims == ("layer", "distance")
    assert first["count"].dtype == np.int64
    assert first["argmax_key"].dtype == np.int64
    assert first["count"].sel(layer=0, distance=13).item() == 0
    assert np.isnan(first["score_mean"].sel(layer=0, distance=13)).all()
    np.testing.assert_array_equal(first["count"].sel(layer=1), 71 - np.arange(71))
    np.testing.assert_array_equal(again["attention"].sel(layer=1), first["attention"].sel(layer=1))


def test_groups_by_name_alone(cap):
    assert "lse" in cap.statistics(0, "rows")
    assert "received" not in cap.statistics(0, ["rows"])
    with pytest.raises(InputError, match="rowz"):
        cap.statistics(0, "rowz")


def test_the_standard_text_repeats_and_others_do_not():
    model = tiny()
    model.tokenizer = word_tokenizer()
    whole = model.to_tokens(standard_text().content)[0]
    cap = capture(model, standard_text(), n_tokens=120, layers=[0])
    assert torch.equal(cap.tokens, whole[:120])
    assert cap.provenance["text"]["SHA-256 of the text"] == (
        hashlib.sha256(standard_text().content.encode()).hexdigest()
    )
    short = capture(model, "the import statement and the import of it", n_tokens=100, layers=[0])
    assert len(short.tokens) == 8
    assert "fewer than the 100 asked for" in short.provenance["text"]["read"]
    from interp.texts.texts import tokenise

    more, what = tokenise(model, standard_text(), len(whole) + 50)
    assert torch.equal(more[0, len(whole) :], whole[:50])
    assert "repeated" in what


def test_the_prefix_that_is_tokenised_gives_the_tokens_of_the_whole():
    model = tiny()
    model.tokenizer = word_tokenizer()
    text = "\n".join(["and then " * 400, "x" * 5_000, "the end " * 700])
    from interp.texts.texts import as_text, tokenise

    for n in (2, 399, 801, 1_200, 2_100):
        tokens, _ = tokenise(model, as_text(text), n)
        assert torch.equal(tokens, model.to_tokens(text)[:, :n])


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("n_tokens", [None, 5])
def test_a_text_begins_with_the_bos_that_is_asked_for(adds, n_tokens):
    model, tokenizer = tiny(), word_tokenizer()
    bos = tokenizer.bos_token_id
    if adds:
        template = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
        tokenizer.backend_tokenizer.post_processor = template
    model.tokenizer = tokenizer
    text = "the import statement and the import of it"
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert bos not in bare and (tokenizer(text)["input_ids"][0] == bos) is adds
    for asked, ids in ((True, [bos, *bare]), (False, bare), (None, [bos] * adds + bare)):
        cap = capture(model, text, n_tokens=n_tokens, layers=[0], loss=False, prepend_bos=asked)
        assert cap.tokens.tolist() == ids[:n_tokens], asked
        assert torch.equal(cap.q(0), capture(model, ids[:n_tokens], layers=[0], loss=False).q(0))


def test_bos_is_asked_of_a_text_and_of_a_tokenizer_that_has_one(model):
    with pytest.raises(InputError, match="prepend_bos=True is for a text"):
        capture(model, random_tokens(5), prepend_bos=True)
    with pytest.raises(InputError, match="prepend_bos='no': give True or False"):
        capture(model, "the import", **{"prepend_bos": "no"})
    with_words = tiny()
    with_words.tokenizer = word_tokenizer()
    with_words.tokenizer.bos_token = None
    with pytest.raises(TokenizerError, match="no BOS token"):
        capture(with_words, "the import statement", prepend_bos=True)


def test_provenance_and_repr(model, cap):
    assert cap.provenance["text"]["token 0"].endswith(f"(id {int(cap.tokens[0])})")
    assert cap.provenance["versions"]["torch"] == torch.__version__
    half = capture(tiny().to(torch.bfloat16), random_tokens(5))
    assert half.provenance["settings"]["dtype"] == "bfloat16"
    assert cap.provenance["model"]["layers"] == "2 full, 2 sliding (window 13)"
    assert "71 tokens" in repr(cap)
    assert "pre_norm, pre_rope, final" in repr(cap)
    per_stage, values = 71 * D_HEAD * (N_HEADS + N_KV) * 4, 71 * D_HEAD * N_KV * 4
    assert capture(model, random_tokens(71), layers=3).n_bytes == 2 * per_stage + values
    assert cap.n_bytes == 3 * (3 * per_stage + values) + (2 * per_stage + values)
