"""Calling something else where modules of a foreign model would run, in one thread and for a while."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

# One thread at a time puts stand-ins into modules, and takes them out before the next one does.
_STANDING_IN = threading.RLock()


@contextmanager
def standing_in(modules: list[nn.Module], stand_in: Callable[..., Any]) -> Iterator[None]:
    """Call ``stand_in(module, …)`` where these modules would run in this thread; in others they run as they are."""
    caller = threading.get_ident()

    def forward(module: nn.Module, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return stand_in(module, *args, **kwargs) if threading.get_ident() == caller else own(*args, **kwargs)

    with _STANDING_IN:
        before = [module.__dict__.get("forward") for module in modules]
        try:
            for module in modules:
                module.__dict__["forward"] = partial(forward, module, module.forward)
            yield
        finally:
            for module, own in zip(modules, before, strict=True):
                if own is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = own
