"""Attach to a live transformers decoder through its attention interface, without converting weights."""

import copy
from typing import Any

from torch import nn

from hooks.attached.interface import register
from hooks.attached.probe import find_layers, interface_set
from hooks.attached.proof import check_same, evaluating, own_outputs
from hooks.attached.schedule import proven_schedule
from hooks.attached.transformer import ATTACHMENT, AttachedTransformer
from hooks.errors import AttachError

_WRAPPED = "_original_component"


def attach(model: Any, tokenizer: Any = None) -> AttachedTransformer:
    """The hook names of `HookedTransformer` on a model that keeps its own code and weights.

    Runs the model on a few tokens to see which of its modules does what, and compares what it computes attached with
    what it computes by itself, on a few tokens and on more than any window that its config names; what could not be
    compared stands in ``attached.limits``. While attached, the model's attention is computed by
    `hooks.functional.attend` (so it can be watched); `AttachedTransformer.detach` restores everything.

    Args:
        model: a live decoder of transformers, with or without its output head, quantised or not, or a
            TransformerBridge, of which the model inside is attached, on the same weights. A model that is attached
            already is detached first.
        tokenizer: needed only where text goes in or out; a bridge brings its own.

    Raises:
        AttachError: it is no transformers decoder, its attention does not go through transformers'
            AttentionInterface, its layers cannot be told apart, or it computes something else when attached.

    Example:
        >>> with HookedTransformer.attach(AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-30B-A3B")) as model:
        ...     _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_[qk]_final")
    """
    original = getattr(model, "original_model", model)
    if tokenizer is None and original is not model:
        tokenizer = getattr(model, "tokenizer", None)
    if not isinstance(original, nn.Module) or not hasattr(getattr(original, "config", None), "get_text_config"):
        raise AttachError(
            f"cannot attach to a {type(original).__name__}: give a live transformers model, such as what "
            "AutoModelForCausalLM.from_pretrained returns; HookedTransformer.from_pretrained takes names and paths"
        )
    if getattr(original.config, "is_encoder_decoder", False):
        raise AttachError(f"{type(original).__name__} has an encoder and a decoder; attach takes models of one decoder")
    original = unbridged(original)
    original.__dict__.get(ATTACHMENT, lambda: None)()
    register()
    configs = _attention_configs(original)
    with evaluating(original):
        own = own_outputs(original)
        with interface_set(configs):
            layers = find_layers(original)
            limits = check_same(original, own)
            schedule = proven_schedule(original, layers)
    return AttachedTransformer(original, layers, configs, tokenizer, schedule=schedule, limits=limits)


def _attention_configs(model: nn.Module) -> list[Any]:
    """The distinct text config objects that modules of the model read their attention implementation from."""
    text = model.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    held = [text, *(getattr(module, "config", None) for module in model.modules())]
    return list({id(config): config for config in held if type(config) is type(text)}.values())


def unbridged(model: nn.Module) -> nn.Module:
    """The model without TransformerBridge's wrappers: copies of its own modules, on the same parameters.

    A bridge puts wrappers into the tree of its model. The tree returned has none, and hooks and configs of its own, so
    that the bridge goes on working beside it; a model without wrappers is returned as it is.
    """
    if not any(_WRAPPED in module._modules for module in model.modules()):
        return model
    return _unwrapped(model, {})


def _unwrapped(module: nn.Module, copied: dict[int, Any]) -> nn.Module:
    """A copy of one module and of all inside it; `copied` holds the one copy of each module and config."""
    wrapped = module._modules.get(_WRAPPED)
    if wrapped is not None:
        return _unwrapped(wrapped, copied)
    if id(module) in copied:
        return copied[id(module)]
    own = copied[id(module)] = copy.copy(module)
    own.__dict__ |= {name: copy.copy(value) for name, value in vars(module).items() if "_hooks" in name}
    own.__dict__["_modules"] = {n: child and _unwrapped(child, copied) for n, child in module._modules.items()}
    if "config" in own.__dict__:
        own.__dict__["config"] = copy.deepcopy(own.__dict__["config"], copied)
    return own
