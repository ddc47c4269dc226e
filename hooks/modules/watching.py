"""Who is shown q and k as they enter the score, in whatever thread and however often a layer attends.

A hook on the final q and k sees neither the mask nor the other tensor; a hook on scores makes attention hold them. A
watcher gets what attention itself gets, and attention stays fused.
"""

import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import HookConflictError
from hooks.functional.place import Place

ScoreWatcher = Callable[[Tensor, Tensor, AttentionSpec, Place], None]

_LOCK = threading.RLock()
_WATCHERS: weakref.WeakKeyDictionary[nn.Module, tuple[ScoreWatcher, ...]] = weakref.WeakKeyDictionary()
# torch.compile guards on the flag, and would not on a dictionary.
_anyone = False


def watch_attention(points: nn.Module, watcher: ScoreWatcher) -> Callable[[], None]:
    """Show a layer's q [batch query head d_head], k, spec and place to a function each time the layer attends.

    Args:
        points: the layer's attention, ``model.blocks[layer].attn`` of a native or an attached model.
        watcher: looks and returns nothing; it must not edit.

    Returns:
        What takes the watcher off again; safe to call twice.
    """
    _change(points, lambda watchers: (*watchers, watcher))
    return lambda: _change(points, lambda watchers: tuple(other for other in watchers if other is not watcher))


def _change(points: nn.Module, edited: Callable[[tuple[ScoreWatcher, ...]], tuple[ScoreWatcher, ...]]) -> None:
    global _anyone
    with _LOCK:
        watchers = edited(_WATCHERS.get(points, ()))
        if watchers:
            _WATCHERS[points] = watchers
        else:
            _WATCHERS.pop(points, None)
        _anyone = bool(_WATCHERS)


def show_to_watchers(points: nn.Module, q: Tensor, k: Tensor, spec: AttentionSpec, place: Place) -> None:
    """Call the watchers of a layer that is about to attend."""
    if not _anyone:
        return
    if torch.compiler.is_compiling():
        raise HookConflictError(
            "scores are being watched, which cannot happen inside a compiled graph: train the model that was compiled, "
            "not what torch.compile returned, or compile it without fullgraph=True"
        )
    for watcher in _WATCHERS.get(points, ()):
        watcher(q, k, spec, place)
