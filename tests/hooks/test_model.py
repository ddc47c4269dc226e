"""Hook points, aliases, edits and modes of the model, held against a forward pass written by hand in float64."""

import by_hand
import pytest
import torch
from tiny_hooked import random_tokens, tiny_model

from hooks import ConfigError, HookedTransformer, HookNameError, MaterializationError, QKNormConfig, RopeConfig
from hooks.config.steps import attention_steps
from hooks.errors import HookConflictError, InputError

BOTH_ORDERS = ["before_rope", "after_rope"]
N = 13


def by_hand_logits(model, tokens, **options):
    return by_hand.forward(dict(model.named_parameters(remove_duplicate=False)), model.cfg, tokens[0], **options)


def order(position):
    return {"qk_norm": QKNormConfig(eps=1e-6, position=position)}


@pytest.mark.parametrize("position", BOTH_ORDERS)
@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (3, 3)])
def test_logits_equal_the_definition(position, heads):
    model = tiny_model(n_heads=heads[0], n_key_value_heads=heads[1], **order(position))
    tokens = random_tokens(N)
    torch.testing.assert_close(model(tokens)[0].double(), by_hand_logits(model, tokens), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("position", BOTH_ORDERS)
@pytest.mark.parametrize("clip_position", [None, "projection", "norm", "rope"])
@pytest.mark.parametrize("scope", ["head", "full"])
def test_every_hook_fires_once_with_its_axes(position, clip_position, scope):
    clip = {} if clip_position is None else {"clip_qkv": 1.5, "clip_position": clip_position}
    model = tiny_model(qk_norm=QKNormConfig(eps=1e-6, position=position, scope=scope), **clip)
    cfg, batch = model.cfg, 2
    sizes = {
        "batch": batch, "pos": N, "query": N, "key": N, "head": cfg.n_heads, "kv_head": cfg.n_kv_heads, "1": 1,
        "d_head": cfg.d_head, "d_model": cfg.d_model, "d_mlp": cfg.d_mlp, "pair": cfg.d_head // 2,
    }  # fmt: skip
    seen = []
    points = [name for name, info in model.registry.infos.items() if info.fires != "rows mode"]
    hooks = [(name, lambda t, hook: seen.append((hook.name, tuple(t.shape)))) for name in points]
    model.run_with_hooks(random_tokens(N, batch=batch), fwd_hooks=hooks)
    expected = {n: tuple(sizes[a] for a in model.registry.infos[n].axes.split()) for n in points}
    assert len(seen) == len(points)
    assert dict(seen) == expected


def test_the_registry_lists_exactly_the_points_that_exist():
    for changes in ({}, {"block_norms": "post"}, {"block_norms": "sandwich"}, {"rope": None}, {"attn_only": True}):
        model = tiny_model(**changes)
        assert set(model.registry.infos) == set(model.hook_dict)


@pytest.mark.parametrize("position", BOTH_ORDERS)
def test_each_alias_is_the_right_tensor(position):
    model = tiny_model(**order(position))
    tokens = random_tokens(N)
    by_alias = {}

    def record(name, tensor):
        by_alias[name] = tensor
        return tensor

    by_hand_logits(model, tokens, edit=record)
    _, cache = model.run_with_cache(tokens)
    for name, expected in by_alias.items():
        if name.endswith(("hook_attn_scores", "hook_pattern")):
            torch.testing.assert_close(cache[name][0].double(), expected, atol=1e-4, rtol=1e-4)
        else:
            torch.testing.assert_close(cache[name][0].double(), expected, atol=1e-4, rtol=1e-4)
    last = {"before_rope": "hook_rot_q", "after_rope": "hook_q_normed"}[position]
    assert cache["hook_q_final", 1] is cache[f"blocks.1.attn.{last}"]
    assert cache["q_pre_rope", -1] is cache["hook_q_pre_rope", 1]


@pytest.mark.parametrize(
    ("clip_position", "position", "steps"),
    [
        ("projection", "before_rope", ("clip", "norm", "rope")),
        ("norm", "before_rope", ("norm", "clip", "rope")),
        ("rope", "before_rope", ("norm", "rope", "clip")),
        ("projection", "after_rope", ("clip", "rope", "norm")),
        ("norm", "after_rope", ("rope", "norm", "clip")),
        ("rope", "after_rope", ("rope", "norm", "clip")),
    ],
)
def test_clip_takes_its_place(clip_position, position, steps):
    model = tiny_model(clip_qkv=0.4, clip_position=clip_position, **order(position))
    assert attention_steps(model.cfg, 0, "q") == steps
    _, cache = model.run_with_cache(random_tokens(N))
    for tensor in ("q", "k", "v"):
        before, after = cache[f"hook_{tensor}_pre_clip", 0], cache[f"hook_{tensor}_post_clip", 0]
        assert before.abs().max() > 0.4
        torch.testing.assert_close(after, before.clamp(-0.4, 0.4), atol=0, rtol=0)


def zero_head(z):
    z = z.clone()
    z[..., 2, :] = 0
    return z


EDITS = {
    "hook_z": zero_head,
    "hook_q_pre_rope": lambda q: torch.cos(q * 3),
    "hook_k_post_norm": lambda k: k * 1.7,
    "hook_k_pre_norm": lambda k: k + 0.3,
    "hook_v": lambda v: v.roll(1, 0 if v.ndim == 3 else 1),
    "hook_pattern": lambda p: p * 0.5,
}


@pytest.mark.parametrize("position", BOTH_ORDERS)
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_the_logits_as_by_hand(name, position):
    model = tiny_model(**order(position))
    tokens, target = random_tokens(N), f"blocks.1.attn.{name}"
    logits = model.run_with_hooks(tokens, fwd_hooks=[(target, lambda t, hook: EDITS[name](t))])
    expected = by_hand_logits(model, tokens, edit=lambda n, t: EDITS[name](t) if n == target else t)
    torch.testing.assert_close(logits[0].double(), expected, atol=3e-4, rtol=1e-4)
    assert (logits - model(tokens)).abs().max() > 1e-2


def test_editing_in_place_works_and_does_not_reach_the_cache():
    model = tiny_model()
    tokens = random_tokens(N)

    def halve(tensor, hook):
        tensor *= 0.5

    plain, _ = model.run_with_cache(tokens)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", halve)]):
        edited, cache = model.run_with_cache(tokens)
    assert (plain - edited).abs().max() > 1e-2
    torch.testing.assert_close(cache["blocks.0.hook_resid_post"], 2 * cache["blocks.1.hook_resid_pre"], rtol=0, atol=0)


def drop_sink(pattern):
    pattern = pattern.clone()
    pattern[..., 0] = 0
    return pattern / pattern.sum(-1, keepdim=True).clamp(min=1e-9)


@pytest.mark.parametrize("window", [None, 5])
def test_a_rows_edit_equals_the_full_edit(window):
    types = {} if window is None else {"layer_types": ("sliding_attention",) * 2, "window_size": window}
    model = tiny_model(**types)
    tokens = random_tokens(N, batch=2)
    full = model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.attn.hook_pattern", lambda p, hook: drop_sink(p))])

    def rows(pattern, hook):
        sink = hook.ctx["key_positions"] == 0
        pattern = pattern.masked_fill(sink, 0)
        return pattern / pattern.sum(-1, keepdim=True).clamp(min=1e-9)

    by_rows = model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.attn.hook_pattern_rows", rows)])
    torch.testing.assert_close(by_rows, full, atol=2e-5, rtol=1e-5)
    assert (full - model(tokens)).abs().max() > 1e-2


def test_the_three_ways_to_attend_agree():
    model = tiny_model(layer_types=("sliding_attention", "full_attention"), window_size=4)
    tokens = random_tokens(37, batch=3)
    seen = {}
    for mode in ("hook_z", "hook_pattern_rows", "hook_pattern"):
        hooks = [(f"blocks.*.attn.{mode}", lambda t, hook: None)]
        hooks.append(("blocks.*.attn.hook_z", lambda t, hook, m=mode: seen.setdefault((m, hook.name), t.clone())))
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    for (mode, name), z in seen.items():
        torch.testing.assert_close(z, seen["hook_z", name], atol=1e-5, rtol=1e-5, msg=mode)


def test_watching_does_not_change_the_last_bit():
    model = tiny_model()
    tokens = random_tokens(N)
    names = [n for n in model.hook_names() if "scale" in n or "normalized" in n or "hook_q" in n]
    watched, _ = model.run_with_cache(tokens, names_filter=names)
    assert torch.equal(watched, model(tokens))


def test_pos_slice_slices_positions_on_every_hook():
    model = tiny_model()
    tokens = random_tokens(N)
    _, whole = model.run_with_cache(tokens)
    _, part = model.run_with_cache(tokens, pos_slice=(2, 7))
    assert set(whole.keys()) == set(part.keys())
    for name, tensor in whole.items():
        axis = model.registry.infos[name].position_axis
        torch.testing.assert_close(part[name], tensor.narrow(axis, 2, 5), atol=0, rtol=0)


def test_a_predicate_matches_canonical_names_and_aliases_once():
    model = tiny_model()
    calls = []
    chosen = model.hook_names(lambda name: name.endswith(("hook_q_pre_rope", "hook_q_post_norm", "hook_q_normed")))
    assert chosen == ["blocks.0.attn.hook_q_normed", "blocks.1.attn.hook_q_normed"]
    model.run_with_hooks(
        random_tokens(N),
        fwd_hooks=[
            (lambda n: n.endswith(("hook_q_pre_rope", "hook_q_normed")), lambda t, hook: calls.append(hook.name))
        ],
    )
    assert calls == chosen
    assert model.hook_names("blocks.*.attn.hook_k_final") == ["blocks.0.attn.hook_rot_k", "blocks.1.attn.hook_rot_k"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blocks.0.attn.hook_qq", "did you mean blocks.0.attn.hook_q"),
        ("blocks.7.attn.hook_q", "no hook 'blocks.7.attn.hook_q'"),
        ("blocks.0.attn.hook_q_clipped", "clip_qkv is None"),
        ("blocks.0.attn.hook_k_pre_clip", "clip_qkv is None"),
        ("blocks.*.attn.hook_nothing", "no hook"),
        ("hook_q_pre_rope", "'blocks.*.attn.hook_q_pre_rope' for all of them"),
    ],
)
def test_a_wrong_name_raises_everywhere(name, hint):
    model = tiny_model()
    tokens = random_tokens(3)
    attempts = [
        lambda: model.add_hook(name, lambda t, hook: t),
        lambda: model.run_with_hooks(tokens, fwd_hooks=[(name, lambda t, hook: t)]),
        lambda: model.run_with_cache(tokens, names_filter=name),
        lambda: model.run_with_cache(tokens, names_filter=["hook_embed", name]),
    ]
    for attempt in attempts:
        with pytest.raises(HookNameError, match="no hook") as error:
            attempt()
        assert hint in str(error.value)
    assert not any(point.has_hooks() for point in model.hook_points())


def test_steps_that_a_model_lacks_say_so():
    model = tiny_model(qk_norm=None, rope=None)
    with pytest.raises(HookNameError, match="qk_norm is None"):
        model.hook_names("blocks.0.attn.hook_q_post_norm")
    with pytest.raises(HookNameError, match="does not rotate"):
        model.hook_names("blocks.0.attn.hook_rot_q")
    with pytest.raises(HookNameError, match="predicate"):
        model.run_with_cache(random_tokens(3), names_filter=lambda name: "rot_q" in name)
    _, cache = model.run_with_cache(random_tokens(3), names_filter="hook_embed")
    with pytest.raises(HookNameError, match="was not cached"):
        cache["blocks.0.hook_resid_pre"]
    assert "hook_embed" in cache
    assert "blocks.0.hook_resid_pre" not in cache


def test_full_and_rows_of_one_layer_conflict():
    model = tiny_model()
    tokens = random_tokens(3)
    pair = [("blocks.0.attn.hook_pattern", lambda t, hook: t), ("blocks.0.attn.hook_pattern_rows", lambda t, hook: t)]
    with pytest.raises(HookConflictError, match="cannot be hooked at once"):
        model.run_with_hooks(tokens, fwd_hooks=pair)
    other_layer = [pair[0], ("blocks.1.attn.hook_pattern_rows", lambda t, hook: t)]
    torch.testing.assert_close(model.run_with_hooks(tokens, fwd_hooks=other_layer), model(tokens), atol=1e-5, rtol=1e-5)
    with pytest.raises(HookConflictError, match="no backward hook"):
        model.add_hook("blocks.0.attn.hook_pattern_rows", lambda t, hook: t, dir="bwd")
    with pytest.raises(HookNameError, match="cannot be cached"):
        model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_pattern_rows")


def test_gradients_flow_through_every_way_to_attend():
    tokens = random_tokens(N)
    gradients = []
    for hooks in (
        [],
        [("blocks.*.attn.hook_pattern_rows", lambda p, hook: p * 1.0)],
        [("blocks.*.attn.hook_pattern", lambda p, hook: p * 1.0)],
    ):
        model = tiny_model()
        with model.hooks(fwd_hooks=hooks):
            model(tokens, return_type="loss").backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        for other in gradients[1:]:
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_backward_hooks_see_gradients():
    model = tiny_model()
    _, cache = model.run_with_cache(
        random_tokens(N), return_type="loss", incl_bwd=True, names_filter="*.hook_q_pre_rope"
    )
    assert cache["blocks.1.attn.hook_q_normed_grad"].shape == cache["hook_q_pre_rope", 1].shape
    assert cache["hook_q_pre_rope_grad", 1].abs().max() > 0


def test_loss_is_cross_entropy_of_the_logits():
    model = tiny_model(output_logits_soft_cap=4.0)
    tokens = random_tokens(N, batch=2)
    logits, loss = model(tokens, return_type="both")
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.loss_per_token(tokens).mean(), expected)
    assert model(tokens, return_type=None) is None


def test_left_padding_and_offsets_leave_the_real_tokens_alone():
    model = tiny_model()
    tokens = random_tokens(N)
    padded = torch.cat([random_tokens(5, seed=3), tokens], 1)
    mask = torch.tensor([[0] * 5 + [1] * N])
    torch.testing.assert_close(model(padded, attention_mask=mask)[:, 5:], model(tokens), atol=2e-4, rtol=1e-4)
    shifted = model(tokens, position_ids=torch.arange(N)[None] + 1000)
    torch.testing.assert_close(shifted, model(tokens), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(
        model(padded, attention_mask=mask, return_type="loss"), model(tokens, return_type="loss"), atol=1e-5, rtol=1e-5
    )


def test_with_config_shares_weights_and_inherits_the_schedule():
    model = tiny_model()
    tokens = random_tokens(N)
    stretched = model.with_config(rope=RopeConfig(rope_type="linear", factor=2.0))
    assert stretched.cfg.rope.rope_theta == model.cfg.rope.rope_theta
    for (name, a), (_, b) in zip(model.named_parameters(), stretched.named_parameters(), strict=True):
        assert a is b, name
    # Dividing frequencies by 2 is the same as halving positions.
    doubled = stretched(tokens, position_ids=2 * torch.arange(N)[None])
    torch.testing.assert_close(doubled, model(tokens), atol=2e-4, rtol=1e-4)
    assert (stretched(tokens) - model(tokens)).abs().max() > 1e-2
    nope = model.with_config(rope=None)
    assert "rotary.full_attention.hook_cos" not in nope.hook_dict
    plain = model.with_config(qk_norm=None)
    assert not any("q_norm" in name for name, _ in plain.named_parameters())
    swapped = model.with_config(qk_norm=QKNormConfig(eps=1e-6, position="after_rope"))
    torch.testing.assert_close(swapped(tokens)[0].double(), by_hand_logits(swapped, tokens), atol=2e-4, rtol=1e-4)


def test_with_config_keeps_learned_frequencies_unless_the_schedule_has_others():
    learned = RopeConfig(rope_theta=10_000.0, learnable=True)
    model, tokens = tiny_model(rope=learned), random_tokens(N)
    with torch.no_grad():
        model.rotary.full_attention.inv_freq *= 1.5
    same = model.with_config(clip_qkv=1e6, rope=RopeConfig(precision="float64"))
    assert same.rotary.full_attention.inv_freq is model.rotary.full_attention.inv_freq
    torch.testing.assert_close(same(tokens), model(tokens), atol=2e-4, rtol=1e-4)
    linear = RopeConfig(rope_type="linear", factor=4.0)
    fresh = model.with_config(rope=linear)
    assert fresh.cfg.rope.learnable
    expected = tiny_model(rope=RopeConfig(rope_theta=10_000.0)).with_config(rope=linear)
    torch.testing.assert_close(fresh(tokens), expected(tokens), atol=2e-4, rtol=1e-4)


def test_with_config_by_layer_type_on_a_model_of_one_schedule():
    model = tiny_model(layer_types=("sliding_attention", "full_attention"), window_size=5)
    changed = model.with_config(rope={"full_attention": RopeConfig(rope_type="linear", factor=4.0)})
    assert changed.cfg.rope_for(0) == model.cfg.rope
    assert (changed.cfg.rope_for(1).factor, changed.cfg.rope_for(1).rope_theta) == (4.0, 10_000.0)
    still = changed.with_config(rope={"sliding_attention": None})
    assert still.cfg.rope_for(0) is None and still.cfg.rope_for(1) == changed.cfg.rope_for(1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": torch.bfloat16}, "cannot change their dtype"),
        ({"device": "meta"}, "cannot change their device"),
        ({"rope": "linear"}, "neither a RopeConfig nor a mapping"),
        ({"rope": {"rope_type": "linear", "factor": 2.0}}, "RopeConfig.from_dict"),
        ({"rope": {"sliding_attention": None}}, "this model's are 'full_attention'"),
        ({"ropes": None}, "did you mean rope"),
    ],
)
def test_with_config_refuses_what_it_cannot_do(changes, said):
    with pytest.raises(ConfigError, match=said):
        tiny_model().with_config(**changes)


def test_a_model_without_a_vocabulary_raises():
    cfg = tiny_model().cfg.replace(d_vocab=-1)
    with pytest.raises(ConfigError, match="size of its vocabulary"):
        HookedTransformer(cfg)


@pytest.mark.parametrize("selector", [3, None, ["blocks.0.attn.hook_q"]])
def test_what_is_no_hook_name_raises(selector):
    with pytest.raises(HookNameError, match="is no hook name"):
        tiny_model().add_hook(selector, lambda x, hook: x)


def test_seed_decides_the_weights_and_the_global_generator_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = tiny_model(), tiny_model()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.embed.weight, b.embed.weight)
    other = HookedTransformer(a.cfg.replace(seed=8))
    assert not torch.equal(a.embed.weight, other.embed.weight)


def test_bad_input_is_named():
    model = tiny_model()
    for bad, message in [
        (torch.tensor([[61]]), "vocabulary of 61"),
        (torch.tensor([[-1]]), "vocabulary"),
        (torch.zeros(1, 0, dtype=torch.long), "integer ids"),
        (torch.zeros(1, 2), "integer ids"),
    ]:
        with pytest.raises(InputError, match=message):
            model(bad)
    tokens = random_tokens(4)
    with pytest.raises(InputError, match="return_type"):
        model(tokens, return_type="logit")
    with pytest.raises(InputError, match="attention_mask has shape"):
        model(tokens, attention_mask=torch.ones(1, 3))
    with pytest.raises(InputError, match="position_ids"):
        model(tokens, position_ids=torch.tensor([[-1, 0, 1, 2]]))


def test_a_cache_that_would_not_fit_says_what_to_leave_out(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 10_000})())
    with pytest.raises(MaterializationError, match="names_filter"):
        model.run_with_cache(random_tokens(50))


def test_beyond_the_trained_length_warns_once_and_does_not_truncate():
    model = tiny_model(n_ctx=8)
    with pytest.warns(UserWarning, match="beyond the 8 tokens"):
        assert model(random_tokens(N)).shape[1] == N
