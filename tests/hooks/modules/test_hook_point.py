"""Hooks belong to the context that set them, go with their pass into its backward, and return what fits."""

import asyncio
import copy
import threading

import pytest
import torch
from tiny_foreign import foreign_model
from tiny_hooked import random_tokens, tiny_model
from torch import nn

from hooks import HookedTransformer
from hooks.errors import InputError
from hooks.modules.hook_point import HookPoint


def in_a_thread(function):
    """What a function returns, or raises, in a thread of its own."""
    found = []

    def run():
        try:
            found.append((function(), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = found[0]
    if error is not None:
        raise error
    return value


def zero(x, hook):
    return x * 0


@pytest.fixture(params=["native", "attached"])
def model(request):
    if request.param == "native":
        yield tiny_model()
    else:
        with HookedTransformer.attach(foreign_model("qwen3_moe")) as attached:
            yield attached


def test_a_run_in_another_thread_has_none_of_these_hooks(model):
    tokens = random_tokens(12)
    with torch.no_grad():
        plain = model(tokens)
        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", zero)]):
            edited = model(tokens)
            with torch.no_grad():
                assert torch.equal(in_a_thread(lambda: model(tokens).detach()), plain)
            assert torch.equal(model(tokens), edited) and not torch.equal(edited, plain)
        assert torch.equal(model(tokens), plain)
        model.add_hook("blocks.0.hook_resid_pre", zero)
        assert torch.equal(in_a_thread(lambda: model(tokens).detach()), edited)
        model.reset_hooks()
        assert torch.equal(in_a_thread(lambda: model(tokens).detach()), plain)


def test_runs_and_caches_of_many_threads_at_once_are_whole(model):
    tokens, wrong = random_tokens(24), []
    with torch.no_grad():
        plain = model(tokens)
        _, expected = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_*")

    def caches():
        with torch.no_grad():
            for _ in range(8):
                _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_*")
                wrong.extend(name for name in expected if not torch.equal(cache[name], expected[name]))

    def edits():
        with torch.no_grad():
            for _ in range(8):
                model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.attn.hook_pattern_rows", zero)])

    def plainly():
        with torch.no_grad():
            wrong.extend("plain" for _ in range(8) if not torch.equal(model(tokens), plain))

    threads = [threading.Thread(target=target) for target in (caches, edits, plainly, caches, edits, caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_attached_model_runs_whole_and_by_layers_in_several_threads_at_once():
    tokens, wrong = random_tokens(24), []
    with HookedTransformer.attach(foreign_model("mixtral")) as model, torch.no_grad():
        plain, nll = model(tokens), model.loss_per_token(tokens)

        def whole():
            with torch.no_grad():
                wrong.extend("whole" for _ in range(20) if not torch.equal(model(tokens), plain))

        def by_layers():
            with torch.no_grad():
                for _ in range(10):
                    resid, context = model.embed_tokens(tokens), model.context(tokens)
                    for block in model.blocks:
                        resid = block(resid, context)
                    wrong.extend(
                        ["layers"] if float((model.residual_loss(resid, tokens) - nll).abs().max()) > 1e-5 else []
                    )

        def losses():
            wrong.extend("loss" for _ in range(10) if not torch.equal(model.loss_per_token(tokens), nll))

        threads = [threading.Thread(target=target) for target in (whole, by_layers, losses, whole, by_layers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_thread_that_looks_at_layers_silences_no_other():
    tokens, inside, leave = random_tokens(12), threading.Event(), threading.Event()
    with HookedTransformer.attach(foreign_model("mixtral")) as model, torch.no_grad():
        logits, expected = model.run_with_cache(tokens)

        def hold():
            with model._silent(lambda layer, *_, **__: None):
                inside.set()
                leave.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            assert inside.wait(60)
            again, cache = model.run_with_cache(tokens)
        finally:
            leave.set()
            thread.join()
        assert torch.equal(again, logits) and set(cache) == set(expected)
        assert all(torch.equal(cache[name], expected[name]) for name in expected)


def test_tasks_of_one_thread_have_hooks_of_their_own():
    model, tokens = tiny_model(), random_tokens(7)
    plain = model(tokens)

    async def hooked(ready, go):
        with model.hooks(fwd_hooks=[("hook_embed", zero)]):
            ready.set()
            await go.wait()
            return model(tokens)

    async def both():
        ready, go = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(hooked(ready, go))
        await ready.wait()
        beside = model(tokens)
        go.set()
        return beside, await task

    beside, edited = in_a_thread(lambda: asyncio.run(both()))  # a browser's test may have left a loop in this one
    assert torch.equal(beside, plain) and not torch.equal(edited, plain)


@pytest.mark.parametrize("point", ["hook_pattern_rows", "hook_pattern", "hook_z"])
def test_the_backward_of_a_hooked_pass_keeps_its_hooks_in_any_thread(point):
    model, tokens = tiny_model(), random_tokens(40)
    parameters = list(model.parameters())

    def gradients(run_backward):
        with model.hooks(fwd_hooks=[(f"blocks.*.attn.{point}", lambda x, hook: x * 0.5)]):
            loss = model(tokens).pow(2).mean()
        return run_backward(lambda: torch.autograd.grad(loss, parameters))

    for ours, theirs in zip(gradients(in_a_thread), gradients(lambda backward: backward()), strict=True):
        assert torch.equal(ours, theirs)
    # Halving the pattern is halving W_O's input, which halves its effect on the stream.
    halved = copy.deepcopy(model)
    with torch.no_grad():
        for block in halved.blocks:
            block.attn.o_proj.weight *= 0.5
    reference = torch.autograd.grad(halved(tokens).pow(2).mean(), list(halved.parameters()))
    names = [name for name, _ in model.named_parameters()]
    for name, ours, theirs in zip(names, gradients(in_a_thread), reference, strict=True):
        scale = 0.5 if name.endswith("o_proj.weight") else 1.0
        torch.testing.assert_close(ours, theirs * scale, rtol=1e-4, atol=1e-6)


def test_backward_hooks_see_and_edit_gradients_after_their_run_has_ended():
    point, seen = HookPoint(), []
    point.name = "here"
    x = torch.arange(3.0, requires_grad=True)
    handle = point.add_hook(lambda g, hook: seen.append(g.clone()), dir="bwd", level=1)
    point.add_hook(lambda g, hook: (3 * g,), dir="bwd", level=1)
    loss = (point(x) ** 2).sum()
    handle.remove()
    point.remove_hooks("both", level=1)
    assert not point.has_hooks()
    in_a_thread(loss.backward)
    assert torch.equal(seen[0], 2 * torch.arange(3.0)) and torch.equal(x.grad, 6 * torch.arange(3.0))


def test_a_backward_hook_finds_what_its_forward_pass_noted():
    point = HookPoint()
    point.add_hook(lambda x, hook: hook.ctx.update(factor=5), level=1)
    point.add_hook(lambda g, hook: g * hook.ctx["factor"], dir="bwd", level=1)
    x = torch.ones(2, requires_grad=True)
    in_a_thread(point(x).sum().backward)
    assert torch.equal(x.grad, torch.full((2,), 5.0))


def test_hooks_run_in_order_and_notes_are_a_contexts_own():
    point = HookPoint()
    point.add_hook(lambda x, hook: x + 1, level=5)
    point.add_hook(lambda x, hook: x * 10)
    point.add_hook(lambda x, hook: x - 2, level=5, prepend=True)
    assert point(torch.tensor(3.0)) == 20 and len(point.fwd_hooks) == 3 and not point.bwd_hooks
    assert in_a_thread(lambda: point(torch.tensor(3.0))) == 30
    point.ctx["a"] = 1
    assert in_a_thread(lambda: dict(point.ctx)) == {} and point.ctx == {"a": 1}
    point.remove_hooks(level=5)
    assert point(torch.tensor(3.0)) == 30 and copy.deepcopy(point)(torch.tensor(3.0)) == 30
    point.clear_context()
    assert point.ctx == {}


def test_a_permanent_hook_stays_when_hooks_are_reset():
    model, tokens = tiny_model(), random_tokens(5)
    model.add_hook("hook_embed", zero, is_permanent=True)
    edited = model(tokens)
    model.reset_hooks()
    assert torch.equal(model(tokens), edited)
    model.reset_hooks(including_permanent=True)
    assert not torch.equal(model(tokens), edited)


MISFITS = {
    "narrow": (lambda x, hook: x[:, :1], r"returned \(\d, 1[,)]"),
    "dtype": (lambda x, hook: x.double(), "torch.float64"),
    "device": (lambda x, hook: x.to("meta"), "on meta"),
    "number": (lambda x, hook: 0.0, "a float"),
    "tuple": (lambda x, hook: (x, x), "a tuple"),
    "list": (lambda x, hook: [x], "a list"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_refused_at_every_point(model, kind):
    hook, says = MISFITS[kind]
    names = model.hook_names()
    assert len(names) > 20
    for name in names:
        with torch.no_grad(), pytest.raises(InputError, match=says) as raised:
            model.run_with_hooks(random_tokens(6), fwd_hooks=[(name, hook)])
        assert str(raised.value).startswith(f"{name}: ") and "given, (" in str(raised.value)


@pytest.mark.parametrize("kind", MISFITS)
def test_a_gradient_that_does_not_fit_is_refused(model, kind):
    hook, says = MISFITS[kind]
    for name in ("blocks.0.hook_resid_post", "blocks.0.attn.hook_z"):
        logits = model.run_with_hooks(random_tokens(6), bwd_hooks=[(name, hook)])
        with pytest.raises(InputError, match=says):
            logits.sum().backward()


def test_a_tensor_reshaped_in_place_is_refused():
    def flatten(x, hook):
        x.resize_(x.numel())

    with pytest.raises(InputError, match="left its tensor in place as"), torch.no_grad():
        tiny_model().run_with_hooks(random_tokens(6), fwd_hooks=[("blocks.0.attn.hook_pattern_rows", flatten)])


@pytest.mark.parametrize("hook", [lambda x: x, lambda x, point: x, lambda: None, nn.Identity(), 3, None])
def test_a_function_that_takes_no_hook_is_refused_when_it_is_added(model, hook):
    name = "blocks.0.attn.hook_z"
    for add in (lambda: model.add_hook(name, hook), lambda: model.run_with_hooks(None, fwd_hooks=[(name, hook)])):
        with pytest.raises(InputError, match=rf"{name}: .*hook"):
            add()
    assert not model.hook_dict[name].has_hooks()


def test_a_function_whose_signature_cannot_be_read_is_refused_when_it_is_called():
    point = HookPoint()
    point.name = "here"
    point.add_hook(max)
    with pytest.raises(InputError, match=r"here: the hook max cannot be called"):
        point(torch.zeros(2))

    def own_error(x, hook):
        raise TypeError("mine")

    point.remove_hooks()
    point.add_hook(own_error)
    with pytest.raises(TypeError, match=r"^mine$"):
        point(torch.zeros(2))


@pytest.mark.parametrize("given", [None, "hook_z", [("hook_z",)], ["hook_z"], {"hook_z": zero}, 3])
def test_hooks_that_are_no_pairs_are_refused(given):
    for way in ("fwd_hooks", "bwd_hooks"):
        with pytest.raises(InputError, match=f"{way}=.*pairs"):
            tiny_model().run_with_hooks(random_tokens(4), **{way: given})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_runs_its_hooks():
    model, tokens = tiny_model(), random_tokens(9)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = model(tokens)
        assert torch.equal(compiled(tokens), plain)
        model.add_hook("hook_embed", zero)
        edited = model(tokens)
        assert not torch.equal(edited, plain) and torch.equal(compiled(tokens), edited)
        model.reset_hooks()
        assert torch.equal(compiled(tokens), plain)
        for edit in (zero, lambda x, hook: x * 0.5):
            with model.hooks(fwd_hooks=[("blocks.*.attn.hook_pattern_rows", edit)]):
                assert torch.equal(compiled(tokens), model(tokens))
        assert torch.equal(compiled(tokens), plain)
    torch._dynamo.reset()
