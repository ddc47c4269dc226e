"""A hooked transformer whose QK-norm and RoPE can be read and edited before and after every step.

Names are imported on first use, so that ``import hooks`` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hooks import recipes
    from hooks.config.attention_spec import AttentionSpec
    from hooks.config.qk_norm import QKNormConfig
    from hooks.config.rope import RopeConfig
    from hooks.config.transformer import HookedTransformerConfig
    from hooks.errors import AttachError, ConfigError, HookNameError, MaterializationError, RopescopeError, WeightError
    from hooks.generation.key_values import KeyValueCache
    from hooks.model import ContextLengthWarning, HookedTransformer

_HOME = {
    "AttachError": "hooks.errors",
    "AttentionSpec": "hooks.config.attention_spec",
    "ConfigError": "hooks.errors",
    "ContextLengthWarning": "hooks.model",
    "HookNameError": "hooks.errors",
    "HookedTransformer": "hooks.model",
    "HookedTransformerConfig": "hooks.config.transformer",
    "KeyValueCache": "hooks.generation.key_values",
    "MaterializationError": "hooks.errors",
    "QKNormConfig": "hooks.config.qk_norm",
    "RopeConfig": "hooks.config.rope",
    "RopescopeError": "hooks.errors",
    "WeightError": "hooks.errors",
    "recipes": "hooks.recipes",
}

__all__ = [
    "AttachError",
    "AttentionSpec",
    "ConfigError",
    "ContextLengthWarning",
    "HookNameError",
    "HookedTransformer",
    "HookedTransformerConfig",
    "KeyValueCache",
    "MaterializationError",
    "QKNormConfig",
    "RopeConfig",
    "RopescopeError",
    "WeightError",
    "recipes",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'hooks' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module = import_module(_HOME[name])
    return module if _HOME[name] == f"hooks.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
