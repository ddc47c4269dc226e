"""What attaching cannot reach says so in a sentence that names what works; and its memory stays linear."""

import subprocess
import sys

import pytest
import torch
from tiny import tiny_model, tokens
from tiny_foreign import foreign_model, foreign_tokens
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    XGLMConfig,
    XGLMForCausalLM,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hooks import HookedTransformer
from hooks.errors import (
    AttachError,
    HookConflictError,
    HookNameError,
    MaterializationError,
    UnknownModelError,
    WeightError,
)


def test_chunks_beyond_their_length_say_so():
    model = foreign_model("llama4")
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        assert attached(foreign_tokens(64, batch=1)).shape == (1, 64, 97)
        with pytest.raises(AttachError, match="within chunks of 64 tokens; run at most 64"):
            attached(foreign_tokens(65, batch=1))


@pytest.mark.parametrize(
    ("model", "name", "says"),
    [
        ("mixtral", "blocks.0.attn.hook_q_normed", "has no QK-norm; it has hook_q, hook_rot_q"),
        ("mixtral", "blocks.0.attn.hook_q_pre_norm", "has no QK-norm"),
        ("mixtral", "blocks.1.attn.hook_q_input", "the same tensor; hook_resid_pre holds it"),
        ("mixtral", "blocks.1.hook_mlp_in", "the same tensor; hook_resid_pre holds it"),
        ("mixtral", "blocks.1.mlp.hook_pre", "experts .* hook_mlp_out holds"),
        ("mixtral", "blocks.1.hook_resid_mid", "hook_resid_pre . hook_attn_out"),
        ("mixtral", "blocks.1.ln1.hook_scale", "its own modules"),
        ("mixtral", "blocks.0.attn.hook_qq", "did you mean blocks.0.attn.hook_q"),
        ("llama4", "blocks.3.attn.hook_rot_q", "layer 3 .* has no rotation; it has hook_q"),
        ("deepseek_v3", "blocks.0.attn.hook_q", "compressed projection.*hook_rot_q is what enters"),
        ("deepseek_v3", "blocks.0.attn.hook_k_pre_rope", "compressed projection"),
        ("qwen3_moe", "blocks.0.attn.hook_q_clipped", "inside its code"),
        ("olmoe", "blocks.0.attn.hook_q_pre_rope", "inside its code; it has hook_q, hook_q_normed, hook_rot_q"),
    ],
)
def test_names_out_of_reach_say_what_is_there(model, name, says):
    with HookedTransformer.attach(foreign_model(model)) as attached, pytest.raises(HookNameError, match=says):
        attached.hook_names(name)


def test_models_that_cannot_be_attached_say_why():
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    falcon = FalconForCausalLM(FalconConfig(**sizes))
    with pytest.raises(AttachError, match=r"does not go through transformers' AttentionInterface.*from_pretrained"):
        HookedTransformer.attach(falcon)
    assert falcon.config._attn_implementation != "ropescope"
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2))
    with pytest.raises(AttachError, match="encoder and a decoder"):
        HookedTransformer.attach(t5)
    with pytest.raises(AttachError, match="Linear: give a live transformers model"):
        HookedTransformer.attach(nn.Linear(2, 2))
    with pytest.raises(UnknownModelError, match=r"HookedTransformer.attach\(model\)"):
        HookedTransformer.from_pretrained(foreign_model("mixtral"))


SPARSE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12, "v_head_dim": 10, "first_k_dense_replace": 1, "n_shared_experts": 1, "index_topk": 6,
    "index_n_heads": 2, "index_head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["deepseek_v32", "deepseek_v4", "glm_moe_dsa", "doge"])
def test_a_model_that_edits_its_mask_is_refused_with_that_reason(kind):
    config = CONFIG_MAPPING[kind]
    sizes = {name: value for name, value in SPARSE.items() if hasattr(config(), name)}
    model = AutoModelForCausalLM.from_config(config(**sizes), attn_implementation="eager").eval()
    with pytest.raises(
        AttachError, match=rf"works on its attention mask itself \(.* in modeling_{kind}.py, line \d+\)"
    ):
        HookedTransformer.attach(model)
    assert model.config._attn_implementation == "eager"


DEAD_ENDS = {
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    ),
    "xglm": lambda: XGLMForCausalLM(
        XGLMConfig(vocab_size=97, d_model=32, ffn_dim=32, num_layers=1, attention_heads=4, pad_token_id=0)
    ),
    "gpt_neox_japanese": lambda: GPTNeoXJapaneseForCausalLM(
        GPTNeoXJapaneseConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    ),
}


@pytest.mark.parametrize("kind", DEAD_ENDS)
def test_where_neither_way_leads_attach_says_so_and_sends_nobody_on(kind):
    with pytest.raises(AttachError, match=f"AttentionInterface.*has no row for '{kind}' either"):
        HookedTransformer.attach(DEAD_ENDS[kind]().eval())


class Int8Linear(nn.Module):
    """A weight that is stored as whole numbers, as quantised models store theirs."""

    def __init__(self, linear):
        super().__init__()
        self.step = float(linear.weight.detach().abs().max() / 127)
        self.weight = nn.Parameter((linear.weight / self.step).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.step, self.bias)


def test_a_quantised_model_is_attached_as_it_is():
    model, ids = tiny_model("qwen3"), tokens(12, batch=1)
    for layer in model.model.layers:
        for name in ("q_proj", "o_proj"):
            setattr(layer.self_attn, name, Int8Linear(getattr(layer.self_attn, name)))
    with torch.no_grad():
        logits = model(ids).logits
    with pytest.raises(WeightError, match=r"quantised.*attach"):
        HookedTransformer.from_pretrained(model)
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        _, cache = attached.run_with_cache(ids)
        assert float((attached(ids) - logits).abs().max()) < 1e-5
        assert cache["hook_q_pre_norm", 0].shape == (1, 12, 4, 32)
        with pytest.raises(HookNameError, match="hook_z before it"):
            attached.hook_names("blocks.0.attn.hook_result")
        with pytest.raises(AttachError, match="no W_O here"):
            attached.blocks[0].attn.W_O  # noqa: B018


def test_several_ends_of_a_text_are_no_hindrance():
    model, ids = tiny_model("qwen3"), tokens(9)
    model.config.eos_token_id = [2, 5]
    with HookedTransformer.attach(model) as attached:
        assert attached(ids).shape == (2, 9, 97)
    with HookedTransformer.attach(tiny_model("glm4")) as attached, torch.no_grad():
        assert attached(ids).shape == (2, 9, 97)


def test_attaching_again_takes_over():
    model, ids = foreign_model("mixtral"), foreign_tokens(7)
    first = HookedTransformer.attach(model)
    with HookedTransformer.attach(model) as second, torch.no_grad():
        assert not first.is_attached
        assert second(ids).shape == (2, 7, 97)
    assert model.config._attn_implementation == "sdpa"


def test_a_body_without_a_head_and_dropout_say_what_to_do():
    body, ids = foreign_model("mixtral").model, foreign_tokens(7)
    with HookedTransformer.attach(body) as attached, torch.no_grad():
        _, cache = attached.run_with_cache(ids, return_type=None, names_filter="blocks.*.attn.hook_q_final")
        assert len(cache) == 2
        with pytest.raises(AttachError, match="no output head"):
            attached(ids)
    model = foreign_model("mixtral")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with HookedTransformer.attach(model) as attached:
        model.train()
        with pytest.raises(AttachError, match=r"dropout 0.5; call model\.eval"):
            attached(ids)


def test_hooks_on_layers_that_run_again_in_the_backward_pass_are_refused():
    model, ids = tiny_model("qwen3"), tokens(9)
    model.gradient_checkpointing_enable()
    model.train()
    with HookedTransformer.attach(model) as attached:
        model(ids).logits.sum().backward()
        with pytest.raises(HookConflictError, match="gradient_checkpointing_disable"):
            attached.run_with_hooks(ids, fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: 2 * z)])
        model.gradient_checkpointing_disable()
        attached.run_with_hooks(ids, fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: 2 * z)])


def test_full_tensors_that_do_not_fit_are_refused():
    with HookedTransformer.attach(foreign_model("mixtral")) as attached, pytest.raises(MaterializationError):
        attached.run_with_cache(torch.ones(1, 400_000, dtype=torch.long))


MEMORY = """
import re, sys
from pathlib import Path
import torch
from tiny_foreign import foreign_model, foreign_tokens
from hooks import HookedTransformer
from interp import capture
torch.set_num_threads(1)
model = foreign_model("qwen3_moe")
model.config.max_position_embeddings = 20_000
# getrusage would count the parent's peak, which a fork inherits.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
with HookedTransformer.attach(model) as attached:
    capture(attached, foreign_tokens(64, batch=1))
    start = peak()
    capture(attached, foreign_tokens(int(sys.argv[1]), batch=1))
    print(peak() - start)
"""


def capture_peak(n):
    """MiB that an attached capture of n tokens adds to a fresh process."""
    environment = {"PYTHONPATH": "tests/support:.", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    printed = subprocess.check_output([sys.executable, "-c", MEMORY, str(n)], env=environment, text=True)
    return float(printed.split()[-1])


@pytest.mark.slow
def test_memory_of_an_attached_capture_is_linear():
    half, whole = capture_peak(8192), capture_peak(16384)
    assert whole < 2.5 * half + 20
    assert whole < 300, "one 16k × 16k matrix of one head takes 1 GiB"
