"""Attach to a live transformers decoder through its attention interface, without converting weights."""

import copy
from typing import Any

from torch import nn

from hooks.attach_interface import register
from hooks.attach_probe import find_layers, interface_set
from hooks.attached import ATTACHMENT, AttachedTransformer
from hooks.errors import AttachError


def attach(model: Any, tokenizer: Any = None) -> AttachedTransformer:
    """The hook names of `HookedTransformer` on a model that keeps its own code and weights.

    Runs the model once on a few tokens to see which of its modules does what. While attached, the model's attention is
    computed by `hooks.attend` (so it can be watched); `AttachedTransformer.detach` restores everything.

    Args:
        model: a live decoder of transformers, with or without its output head, quantised or not, or a TransformerBridge,
            whose original model is attached under its own modules. A model that is attached already is detached first.
        tokenizer: needed only where text goes in or out; a bridge brings its own.

    Raises:
        AttachError: it is no transformers decoder, its attention does not go through transformers' AttentionInterface, or
            its layers cannot be told apart.

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
    with interface_set(configs):
        layers = find_layers(original)
    return AttachedTransformer(original, layers, configs, tokenizer)


def _attention_configs(model: nn.Module) -> list[Any]:
    """The distinct text config objects that modules of the model read their attention implementation from."""
    text = model.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    held = [text, *(getattr(module, "config", None) for module in model.modules())]
    return list({id(config): config for config in held if type(config) is type(text)}.values())


def unbridged(module: nn.Module) -> nn.Module:
    """The module tree without TransformerBridge's wrappers: its own modules again, on the same parameters.

    A bridge puts wrappers into the tree of its model; the tree here is a copy of the modules that hold some, so the bridge
    goes on working. A tree without wrappers is returned as it is.
    """
    wrapped = module._modules.get("_original_component")
    if wrapped is not None:
        return unbridged(wrapped)
    children = {name: child if child is None else unbridged(child) for name, child in module._modules.items()}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    own = copy.copy(module)
    own.__dict__["_modules"] = children
    return own
