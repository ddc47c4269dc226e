"""How often the host waits for a device: never per block of rows, whatever the length."""

from functools import partial

import pytest
import torch
from tiny_hooked import random_tokens, tiny_model

from hooks import AttentionSpec, recipes
from hooks.functional.attend import attend_fused, attend_rows
from interp import attention_statistics

TYPES = ("sliding_attention", "full_attention")
ROWS = "blocks.*.attn.hook_attn_scores_rows"
SPECS = {
    "causal": AttentionSpec(0.3),
    "window": AttentionSpec(0.3, window=30),
    "both sides": AttentionSpec(0.3, causal=False),
    "soft-cap": AttentionSpec(0.3, softcap=2.0),
    "alibi": AttentionSpec(0.3, alibi_slopes=(0.1, 0.2, 0.3, 0.4)),
}


def waits(device, run):
    """How often the host waits in a run, and what for."""
    with torch.no_grad(), device.counting():
        run()
    return device.n_waits, dict(device.waits)


def tensors(device, n, heads=(4, 2, 2)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, h, 8, generator=generator).to(device.device) for h in heads]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("attend", [attend_fused, attend_rows])
def test_attention_waits_for_nothing(device, attend, spec):
    q, k, v = tensors(device, 300)
    found = waits(device, lambda: attend(q, k, v, SPECS[spec]))
    assert found[0] == 0, found


def test_attention_past_padding_waits_once(device):
    q, k, v = tensors(device, 300)
    mask = torch.ones(1, 300, dtype=torch.bool)
    mask[0, :5] = False
    mask = mask.to(device.device)
    for attend in (attend_fused, attend_rows):
        found = waits(device, lambda attend=attend: attend(q, k, v, SPECS["causal"], key_mask=mask))
        assert found[0] == 1, found  # whether anything is hidden at all


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 4),  # the smallest and largest token id, the last position; the frequencies go to the device
        ({"layer_types": TYPES, "window_size": 20}, 5),
        ({"attn_scores_soft_cap": 5.0}, 4),
        ({"learned_sinks": True}, 4),
        ({"rope": None, "alibi_slopes": (0.1, 0.2, 0.3, 0.4)}, 3),
    ],
)
def test_a_forward_waits_as_often_at_any_length_and_depth(cuda, changes, most):
    for n_layers, n in ((2, 70), (2, 400), (4, 400)):
        # The pattern of layer types repeats.
        types = {"layer_types": changes["layer_types"] * (n_layers // 2)} if "layer_types" in changes else {}
        model, tokens = cuda.moved(tiny_model(n_layers=n_layers, **changes | types)), random_tokens(n).to(cuda.device)
        found = waits(cuda, lambda model=model, tokens=tokens: model(tokens))
        assert found[0] <= most, found


@pytest.mark.parametrize(
    ("recipe", "per_block", "once"),
    [
        (recipes.remove_sink(), 0, 0),
        (recipes.remove_sink(heads=[1]), 0, 1),
        (recipes.limit_distance(5), 0, 0),
        (recipes.keep_top_k(3), 0, 0),
        (recipes.knock_out([20], [3]), 0, 2),
        (recipes.boost_keys([3], 1.0), 0, 1),
        (recipes.cap_scores(1.0), 0, 0),
        (recipes.distance_temperature(lambda d: 1 + d), 1, 0),  # a bad temperature must be an error before its block is
    ],
)
def test_recipes_copy_once_and_wait_for_nothing_in_a_block(cuda, recipe, per_block, once):
    model, tokens = cuda.moved(tiny_model()), random_tokens(300).to(cuda.device)
    plain, _ = waits(cuda, lambda: model(tokens))
    blocks = 2 * 5  # of 64 rows
    found = waits(cuda, lambda: model.run_with_hooks(tokens, fwd_hooks=[(ROWS, recipe)]))
    assert found[0] == plain + once + per_block * blocks, found


def test_the_portable_pass_waits_as_often_at_any_length(cuda):
    """A fixed number a pass and two a kv head: whether float32 is enough, and whether a score overflowed."""
    counts = {}
    for n, kv_heads in ((130, 1), (520, 1), (520, 2)):
        q, k, v = (x[0] for x in tensors(cuda, n, (4, kv_heads, kv_heads)))
        w_o = torch.randn(4, 8, 12).to(cuda.device)
        for name, spec in (*SPECS.items(), ("sinks", AttentionSpec(0.3, sinks=torch.ones(4, device=cuda.device)))):
            counts[name, n, kv_heads], why = waits(cuda, partial(attention_statistics, q, k, spec, v=v, w_o=w_o))
            assert counts[name, n, kv_heads] <= 53 + 2 * kv_heads, why
    for name in (*SPECS, "sinks"):
        assert counts[name, 130, 1] == counts[name, 520, 1] == counts[name, 520, 2] - 2


def test_the_portable_pass_launches_a_bounded_number_of_kernels_a_block(cuda):
    q, k, v = (x[0] for x in tensors(cuda, 512, (2, 1, 1)))
    launches = []
    for n in (256, 512):
        with cuda.counting():
            attention_statistics(q[:n], k[:n], AttentionSpec(0.3), v=v[:n])
        launches.append(cuda.launches.total())
    assert (launches[1] - launches[0]) / 2 <= 230  # two blocks of 128 rows more
