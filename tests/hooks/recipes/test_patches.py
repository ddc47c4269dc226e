"""Ablation and patching against transformers with the same edit by hand in its own modules: logits and gradients."""

from contextlib import contextmanager

import pytest
import torch
from tiny import tiny_model as transformers_model
from tiny import tokens
from tiny_foreign import foreign_model
from tiny_hooked import random_tokens, tiny_model

from hooks import ConfigError, HookedTransformer, recipes
from hooks.errors import HookNameError, InputError
from interp import capture

NATIVE = ("llama", "gemma3_text", "qwen3")
FOREIGN = ("mixtral", "deepseek_v3")
HEADS = [(0, 1), (1, 0), (1, 2)]
N = 12


def loaded(name):
    return transformers_model(name) if name in NATIVE else foreign_model(name)


def ways(model, name):
    """The same model, native where the family has a row, and attached."""
    if name in NATIVE:
        yield HookedTransformer.from_pretrained(model)
    with HookedTransformer.attach(model) as attached:
        yield attached


def leaf_of(ours, original, name):
    """A weight of transformers' model, as the model that hooks run on has it."""
    return ours.get_parameter(name) if isinstance(ours, HookedTransformer) else original


def layers_of(model):
    return model.model.layers


@contextmanager
def edited(model, edit):
    """transformers' model whose output projections read what `edit` makes of z, [batch pos head d], by layer."""
    handles = []
    for layer, block in enumerate(layers_of(model)):
        n_heads = model.config.num_attention_heads

        def before(_, args, layer=layer, n_heads=n_heads):
            return (edit(args[0].unflatten(-1, (n_heads, -1)), layer).flatten(2),)

        handles.append(block.self_attn.o_proj.register_forward_pre_hook(before))
    yield model
    for handle in handles:
        handle.remove()


def kept_z(model, ids, **options):
    """z of every layer of an unedited run."""
    kept = {}

    def keep(z, layer):
        kept[layer] = z.detach().clone()
        return z

    with edited(model, keep), torch.no_grad():
        model(ids, use_cache=False, **options)
    return kept


def with_heads(z, layer, values):
    """z with the heads of one layer replaced: values maps (layer, head) to [batch pos d]."""
    parts = list(z.unbind(2))
    for (at, head), value in values.items():
        if at == layer:
            parts[head] = value(parts[head])
    return torch.stack(parts, 2)


def close(got, expected, within=3e-5):
    got, expected = got.detach(), expected.detach()
    assert float((got - expected).abs().max()) <= within * float(expected.abs().max())


def spread(mean, like):
    return mean.expand_as(like)


@pytest.mark.parametrize("value", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", [*NATIVE, *FOREIGN])
def test_ablation_is_the_edit_by_hand(name, value):
    model, ids, other = loaded(name), tokens(N, vocab=61), tokens(N, vocab=61, batch=1, seed=5)
    elsewhere = kept_z(model, other)
    made = {
        "zero": lambda at, head: lambda z: z * 0,
        "mean": lambda at, head: lambda z: spread(z.mean(1, keepdim=True), z),
        "resample": lambda at, head: lambda z: elsewhere[at][:, :, head].expand_as(z),
    }[value]
    values = {pair: made(*pair) for pair in HEADS}
    weight = torch.randn(2, N, model.config.vocab_size, generator=torch.Generator().manual_seed(1))
    leaf = layers_of(model)[0].self_attn.o_proj.weight
    plain = model(ids, use_cache=False).logits
    with edited(model, lambda z, layer: with_heads(z, layer, values)):
        expected = model(ids, use_cache=False).logits
        gradient = torch.autograd.grad((expected * weight).sum(), leaf)[0]
    assert float((expected - plain).detach().abs().max()) > 1e-2 * float(plain.detach().abs().max())
    for ours in ways(model, name):
        with torch.no_grad():
            _, cache = ours.run_with_cache(other, names_filter="blocks.*.attn.hook_z")
        sources = (cache, capture(ours, other)) if value == "resample" else (value,)
        for source in sources:
            hook = ("blocks.*.attn.hook_z", recipes.ablate_heads(HEADS, source))
            got = ours.run_with_hooks(ids, fwd_hooks=[hook])
            close(got, expected)
            own = leaf_of(ours, leaf, "blocks.0.attn.o_proj.weight")
            close(torch.autograd.grad((got * weight).sum(), own)[0], gradient, 1e-4)
            close(ours.run_with_hooks(ids[1:], fwd_hooks=[hook]), expected[1:])


@pytest.mark.parametrize("positions", [None, [0, 4, N - 1], torch.tensor([3])])
@pytest.mark.parametrize("name", ["gemma3_text", "mixtral"])
def test_patched_heads_are_the_edit_by_hand(name, positions):
    model, ids, other = loaded(name), tokens(N, vocab=61), tokens(N, vocab=61, seed=5)
    elsewhere = kept_z(model, other)
    chosen = torch.zeros(N, dtype=torch.bool)
    chosen[list(range(N)) if positions is None else torch.as_tensor(positions)] = True
    values = {
        (at, head): lambda z, at=at, head=head: torch.where(chosen[None, :, None], elsewhere[at][:, :, head], z)
        for at, head in HEADS
    }
    with edited(model, lambda z, layer: with_heads(z, layer, values)), torch.no_grad():
        expected = model(ids, use_cache=False).logits
    for ours in ways(model, name):
        cache = ours.run_with_cache(other, names_filter="blocks.*.attn.hook_z")[1]
        kept = {key: tensor.clone() for key, tensor in cache.items()}
        for source in (cache, dict(cache)):
            hook = ("blocks.*.attn.hook_z", recipes.patch_heads(source, HEADS, positions))
            close(ours.run_with_hooks(ids, fwd_hooks=[hook]), expected)
        row = capture(ours, other[0])
        hook = ("blocks.*.attn.hook_z", recipes.patch_heads(row, HEADS, positions))
        close(ours.run_with_hooks(ids[:1], fwd_hooks=[hook]), expected[:1])
        assert all(torch.equal(kept[key], cache[key]) for key in kept)


@pytest.mark.parametrize("positions", [None, [1, 7]])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral"])
def test_a_patched_stream_is_the_edit_by_hand(name, positions):
    model, ids, other = loaded(name), tokens(N, vocab=61), tokens(N, vocab=61, seed=5)
    seen = {}
    handle = layers_of(model)[1].register_forward_pre_hook(lambda _, args: seen.update(stream=args[0].detach()))
    with torch.no_grad():
        model(other, use_cache=False)
    handle.remove()
    chosen = torch.zeros(N, dtype=torch.bool)
    chosen[list(range(N)) if positions is None else positions] = True

    def replace(_, args):
        return (torch.where(chosen[None, :, None], seen["stream"], args[0]), *args[1:])

    leaf = model.get_input_embeddings().weight
    handle = layers_of(model)[1].register_forward_pre_hook(replace)
    expected = model(ids, use_cache=False).logits
    gradient = None if positions is None else torch.autograd.grad(expected.square().sum(), leaf)[0]
    handle.remove()
    for ours in ways(model, name):
        cache = ours.run_with_cache(other, names_filter=["blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"])[1]
        for point in cache:
            hook = (point, recipes.patch_residual(cache, positions))
            got = ours.run_with_hooks(ids, fwd_hooks=[hook])
            close(got, expected)
            if gradient is not None:
                own = leaf_of(ours, leaf, "embed.weight")
                close(torch.autograd.grad(got.square().sum(), own)[0], gradient, 1e-4)


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral"])
def test_a_mean_is_of_one_text_without_padding(name):
    model, ids = loaded(name), tokens(N, vocab=61)
    lengths = [[5, 1, 6], [9, 3]]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, :4] = 0
    hook = ("blocks.*.attn.hook_z", recipes.ablate_heads(HEADS, "mean"))
    for ours in ways(model, name):
        packed = ours.run_with_hooks(ids, position_ids=positions, fwd_hooks=[hook])
        for row, parts in enumerate(lengths):
            for part, document in zip(packed[row].split(parts), ids[row].split(parts), strict=True):
                close(part, ours.run_with_hooks(document[None], fwd_hooks=[hook])[0])
        padded = ours.run_with_hooks(ids, attention_mask=mask, fwd_hooks=[hook])
        close(padded[0], ours.run_with_hooks(ids[:1], fwd_hooks=[hook])[0])
        close(padded[1, 4:], ours.run_with_hooks(ids[1:, 4:], fwd_hooks=[hook])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mean_in_low_precision_is_rounded_once(dtype):
    model, ids, seen = tiny_model(dtype=dtype), random_tokens(3000), []
    mean = ("blocks.0.attn.hook_z", recipes.ablate_heads([(0, 3)], "mean"))
    look = ("blocks.0.attn.hook_z", lambda z, hook: seen.append(z.clone()))
    with torch.no_grad():
        model.run_with_hooks(ids, fwd_hooks=[look, mean, look])
    before, after = seen
    expected = before[:, :, 3].double().mean(1, keepdim=True).to(dtype)
    expected = expected.expand_as(after[:, :, 3])
    torch.testing.assert_close(after[:, :, 3], expected, atol=0, rtol=2 * torch.finfo(dtype).eps)
    assert torch.equal(after[:, :, :3], before[:, :, :3])


def test_z_of_a_capture_is_the_models(tmp_path):
    for model in (tiny_model(), tiny_model(layer_types=("sliding_attention", "full_attention"), window_size=4)):
        ids = random_tokens(20)
        cache = model.run_with_cache(ids, names_filter="blocks.*.attn.hook_z")[1]
        cap = capture(model, ids, tmp_path / str(model.cfg.window_size))
        for layer in range(2):
            close(cap.z(layer), cache["z", layer][0].detach(), 1e-5)


def test_an_ablated_head_writes_its_bias_alone():
    model, ids = tiny_model(attn_out_bias=True), random_tokens(6)
    every = [(0, head) for head in range(4)]
    out = []
    hooks = [
        ("blocks.0.attn.hook_z", recipes.ablate_heads(every)),
        ("blocks.0.attn.hook_out", lambda x, hook: out.append(x)),
    ]
    model.run_with_hooks(ids, fwd_hooks=hooks)
    assert torch.equal(out[0], model.b_O[0].expand_as(out[0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.ablate_heads([3]), r"heads is \[3\]: give \(layer, head\) pairs"),
        (lambda: recipes.ablate_heads([]), "heads is"),
        (lambda: recipes.ablate_heads((5, 2)), "heads is"),
        (lambda: recipes.ablate_heads([(0, -1)]), "heads holds a head that is -1"),
        (lambda: recipes.ablate_heads([(True, 1)]), "heads holds a layer that is True"),
        (lambda: recipes.ablate_heads([(0, 1)], "median"), "value='median': give 'zero', 'mean', or a cache"),
        (lambda: recipes.ablate_heads([(0, 1)], torch.zeros(3)), "is no source"),
        (lambda: recipes.patch_heads(None, [(0, 1)]), "None is no source"),
        (lambda: recipes.patch_heads({}, [(0, 1)], [-1]), "positions holds a value that is -1"),
        (lambda: recipes.patch_residual({}, []), "positions is"),
        (lambda: recipes.patch_residual(capture(tiny_model(), random_tokens(6))), "holds no residual stream"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("point", "recipe", "error", "message"),
    [
        ("attn.hook_z", lambda c: recipes.ablate_heads([(1, 4)]), InputError, "no head 4: its 4 heads"),
        ("attn.hook_q", lambda c: recipes.ablate_heads([(1, 0)]), InputError, "hook_q does not hold what heads give"),
        ("attn.hook_z", lambda c: recipes.patch_heads(c, [(1, 0)], [6]), InputError, "no position 6: its 6 tokens"),
        (
            "attn.hook_z",
            lambda c: recipes.patch_heads(dict(c), [(0, 0), (1, 0)]),
            InputError,
            "no blocks.1.attn.hook_z",
        ),
        ("attn.hook_z", lambda c: recipes.ablate_heads([(1, 0)], c), HookNameError, "was not cached"),
        ("hook_resid_mid", lambda c: recipes.patch_residual(c), HookNameError, "was not cached"),
        ("attn.hook_out", lambda c: recipes.patch_residual(c), InputError, "no point of the residual stream"),
        ("hook_resid_pre", lambda c: recipes.patch_residual(c), InputError, r"\(1, 6, 32\) here and \(1, 7, 32\)"),
    ],
)
def test_what_cannot_be_run_is_named(point, recipe, error, message):
    model = tiny_model()
    names = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"]
    whole = point.startswith("hook_resid_pre")
    cache = model.run_with_cache(random_tokens(7 if whole else 6), names_filter=names)[1]
    if "position 6" in message:
        cache = model.run_with_cache(random_tokens(6), names_filter="blocks.*.attn.hook_z")[1]
    with pytest.raises(error, match=message):
        model.run_with_hooks(random_tokens(6), fwd_hooks=[(f"blocks.1.{point}", recipe(cache))])


def test_a_mean_without_the_whole_text_is_refused():
    from hooks.functional.place import Place
    from hooks.modules.attention import past_z
    from hooks.modules.hook_point import HookPoint

    point = HookPoint()
    point.name = "blocks.0.attn.hook_z"
    point.add_hook(recipes.ablate_heads([(0, 0)], "mean"))
    with pytest.raises(InputError, match="whole text in one pass"):
        past_z(point, torch.ones(1, 1, 2, 4), Place(query_start=5), 6)
