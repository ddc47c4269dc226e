"""A hooked transformer whose QK-norm and RoPE can be read and edited before and after every step.

Names are imported on first use, so that ``import hooks`` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hooks.attend import AttentionSpec
    from hooks.config import HookedTransformerConfig, QKNormConfig, RopeConfig
    from hooks.errors import ConfigError, HookNameError, MaterializationError, RopescopeError, WeightError
    from hooks.model import HookedTransformer

_HOME = {
    "AttentionSpec": "hooks.attend",
    "ConfigError": "hooks.errors",
    "HookNameError": "hooks.errors",
    "HookedTransformer": "hooks.model",
    "HookedTransformerConfig": "hooks.config",
    "MaterializationError": "hooks.errors",
    "QKNormConfig": "hooks.config",
    "RopeConfig": "hooks.config",
    "RopescopeError": "hooks.errors",
    "WeightError": "hooks.errors",
}

__all__ = [
    "AttentionSpec",
    "ConfigError",
    "HookNameError",
    "HookedTransformer",
    "HookedTransformerConfig",
    "MaterializationError",
    "QKNormConfig",
    "RopeConfig",
    "RopescopeError",
    "WeightError",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'hooks' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
