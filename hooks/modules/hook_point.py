"""A hook point: an identity module that shows its tensor to hooks, each of which belongs to whoever set it.

TransformerLens keeps all hooks on the module, so that a pass in another thread runs them too, and torch broadcasts
whatever they return. Here the hooks of one run live in the context (thread or task) that set them, and what a hook
returns has to fit the tensor that it was given.
"""

import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import BackwardHook
from transformer_lens import hook_points as lens

from hooks.checks import choice, shown
from hooks.errors import HookConflictError, InputError

Direction = Literal["fwd", "bwd"]

# Hooks of single runs, by point. The mapping is replaced, never changed: a task's copy of a context stays as it was.
_SCOPED: ContextVar[Mapping["HookPoint", tuple["Hook", ...]]] = ContextVar("hooks", default=MappingProxyType({}))
_NOTES: ContextVar[weakref.WeakKeyDictionary["HookPoint", dict[str, Any]] | None] = ContextVar("notes", default=None)
_LOCK = threading.RLock()
_ORDER = count(1)
# How many hooks of single runs there are in all contexts. torch.compile guards on the flag, and would not on a context.
_alive = 0
_any_scoped = False


@dataclass(frozen=True, eq=False)
class Hook:
    """One function on one point, with the fields of TransformerLens' ``LensHandle``.

    Attributes:
        point: where it sits.
        user_hook: the function.
        dir: "fwd" or "bwd".
        order: the hooks of a point run from the lowest to the highest.
        is_permanent: whether it stays when hooks are reset.
        context_level: the run that it was set for; None where it holds for every context.
    """

    point: "HookPoint"
    user_hook: Callable
    dir: Direction
    order: int
    is_permanent: bool = False
    context_level: int | None = None

    @property
    def hook(self) -> "Hook":
        """What takes it off again: itself."""
        return self

    def remove(self) -> None:
        """Take it off its point; safe to call twice."""
        self.point._keep(lambda hook: hook is not self)


class HookPoint(lens.HookPoint):
    """An identity on which functions can be hooked, called as ``hook(tensor, hook=point)``.

    A hook returns None, having looked or edited in place, or a tensor of the same shape, dtype and device. A backward
    hook gets the gradient; it is one that was set when the forward pass ran, and runs in whatever thread the backward
    pass does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shared: tuple[Hook, ...] = ()

    @property
    def fwd_hooks(self) -> list[Hook]:
        """Hooks of the forward pass that hold in this context, in the order in which they run."""
        return self._now("fwd")

    @fwd_hooks.setter
    def fwd_hooks(self, hooks: list) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """TransformerLens' constructor empties the list, which is empty."""

    @property
    def bwd_hooks(self) -> list[Hook]:
        """Hooks of the backward pass that hold in this context, in the order in which they run."""
        return self._now("bwd")

    @bwd_hooks.setter
    def bwd_hooks(self, hooks: list) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As for ``fwd_hooks``."""

    @property
    def ctx(self) -> dict[str, Any]:
        """Notes for hooks, such as the positions of a tensor's rows; each context has its own."""
        return self._notes().setdefault(self, {})

    @ctx.setter
    def ctx(self, notes: dict[str, Any]) -> None:
        self._notes()[self] = notes

    def clear_context(self) -> None:
        """Forget the notes of this context."""
        self._notes().pop(self, None)

    def add_hook(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hook: Callable,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        alias_names: list[str] | None = None,
    ) -> Hook:
        """Hook a function on this point, for every context, or for this one until its run ends.

        Args:
            hook: called as ``hook(tensor, hook=point)``.
            dir: "fwd" or "bwd".
            is_permanent: stay when hooks are reset.
            level: the run that it is for; the hook then lives in the calling context only.
            prepend: run before the hooks that are there already.
            alias_names: not for these points, which fire once, under one name.

        Raises:
            InputError: what was given cannot be called so, or no such direction.
            HookConflictError: alias names were given.
        """
        choice("dir", dir, ("fwd", "bwd"))
        self._check_callable(hook)
        if alias_names is not None:
            raise HookConflictError(f"{self.name} fires once and under this name: give no alias_names")
        number = next(_ORDER)
        made = Hook(self, hook, dir, -number if prepend else number, is_permanent, level)
        if level is None:
            with _LOCK:
                self._shared = (*self._shared, made)
        else:
            _count(made)
            scoped = _SCOPED.get()
            _SCOPED.set({**scoped, self: (*scoped.get(self, ()), made)})
        return made

    def has_hooks(
        self,
        dir: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = True,
        level: int | None = None,
    ) -> bool:
        """Whether any hook holds in this context."""
        if not (self._shared or _any_scoped):
            return False
        match = _matching(dir, including_permanent, level)
        return any(map(match, self._all()))

    def remove_hooks(
        self,
        dir: Literal["fwd", "bwd", "both"] = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take off hooks that hold in this context: those of every context, and its own."""
        match = _matching(dir, including_permanent, level)
        self._keep(lambda hook: not match(hook))

    def forward(self, x: Tensor) -> Tensor:
        """The tensor, as the hooks of this context leave it."""
        if not (self._shared or _any_scoped):
            return x
        ahead, behind = self._now("fwd"), self._now("bwd")
        watched = BackwardHook(self, [self._backward(behind)], []) if behind else None
        if watched is not None:
            (x,) = watched.setup_input_hook((x,))
        x = run_hooks(self, [hook.user_hook for hook in ahead], x)
        return x if watched is None else cast(Tensor, watched.setup_output_hook(x))

    def _backward(self, hooks: list[Hook]) -> Callable:
        """What torch calls with the gradients: these hooks, in the notes that this forward pass had."""
        notes, functions = self.ctx, [hook.user_hook for hook in hooks]

        def run(_: object, __: tuple, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor] | None:
            if gradients[0] is None:
                return None
            self.ctx = notes
            edited = run_hooks(self, functions, gradients[0], what="gradient")
            return None if edited is gradients[0] else (edited,)

        return run

    def _now(self, dir: Direction) -> list[Hook]:
        """The hooks of one direction that hold in this context, in order."""
        return sorted((hook for hook in self._all() if hook.dir == dir), key=lambda hook: hook.order)

    def _all(self) -> tuple[Hook, ...]:
        """The hooks of every context and those of this one."""
        if torch.compiler.is_compiling():
            # torch.compile leaves its graph here and runs the hooks as they are; where it must not, it says why.
            raise HookConflictError(
                f"{self.name} is hooked, and a hook cannot run inside a compiled graph: run the model that was "
                "compiled, not what torch.compile returned, or compile it without fullgraph=True"
            )
        return (*self._shared, *_SCOPED.get().get(self, ()))

    def _keep(self, wanted: Callable[[Hook], bool]) -> None:
        """Take off all other hooks."""
        if self._shared:
            with _LOCK:
                self._shared = tuple(filter(wanted, self._shared))
        scoped = _SCOPED.get()
        if self in scoped:
            kept = tuple(filter(wanted, scoped[self]))
            others = {point: hooks for point, hooks in scoped.items() if point is not self}
            _SCOPED.set({**others, self: kept} if kept else others)

    @staticmethod
    def _notes() -> weakref.WeakKeyDictionary["HookPoint", dict[str, Any]]:
        """The notes of all points in this context."""
        notes = _NOTES.get()
        if notes is None:
            _NOTES.set(notes := weakref.WeakKeyDictionary())
        return notes

    def _check_callable(self, hook: Any) -> None:
        """Refuse a function that cannot be called as a hook, where its signature can be read."""
        if not callable(hook):
            raise InputError(f"{self.name}: {shown(hook)} is no hook function: give hook(tensor, hook=point)")
        try:
            signature = inspect.signature(hook.forward if isinstance(hook, nn.Module) else hook)
        except (TypeError, ValueError):
            return
        try:
            signature.bind(None, hook=self)
        except TypeError as error:
            raise _not_called(self, hook, error) from error


def run_hooks(point: lens.HookPoint, functions: Iterable[Callable], x: Tensor, what: str = "tensor") -> Tensor:
    """A tensor after these hook functions, one after another.

    Args:
        point: where they sit; they get it as ``hook``.
        functions: the functions.
        x: the tensor, which they may edit in place.
        what: "tensor", or "gradient", which may come back in a tuple of one, as torch has it.

    Raises:
        InputError: a function returned what does not fit the tensor, changed its shape or type in place, or takes no
            argument ``hook``.
    """
    for function in functions:
        like = (x.shape, x.dtype, x.device)
        returned = _call(point, function, x)
        if what == "gradient" and isinstance(returned, tuple) and len(returned) == 1:
            returned = returned[0]
        edited = x if returned is None else returned
        if not isinstance(edited, Tensor) or (edited.shape, edited.dtype, edited.device) != like:
            if isinstance(edited, Tensor):
                got = f"{tuple(edited.shape)} {edited.dtype} on {edited.device}"
            else:
                got = f"a {type(edited).__name__}"
            did = "left its tensor in place as" if returned is None else "returned"
            raise InputError(
                f"{point.name}: {_named(function)} {did} {got}; a hook returns None or a {what} like the one that it "
                f"was given, {tuple(like[0])} {like[1]} on {like[2]}"
            )
        x = edited
    return x


def _call(point: lens.HookPoint, function: Callable, x: Tensor) -> Any:
    """What the function returns; an error of the call itself is named, one from inside the function is its own."""
    try:
        return function(x, hook=point)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise _not_called(point, function, error) from error
        raise


def _not_called(point: lens.HookPoint, function: Callable, error: TypeError) -> InputError:
    return InputError(
        f"{point.name}: {_named(function)} cannot be called as hook(tensor, hook=point): {error}; a hook takes the "
        "tensor and a keyword argument `hook`, as in lambda tensor, hook: 2 * tensor"
    )


def _matching(dir: str, including_permanent: bool, level: int | None) -> Callable[[Hook], bool]:
    """Whether a hook is one of those that were asked for."""
    dirs = ("fwd", "bwd") if choice("dir", dir, ("fwd", "bwd", "both")) == "both" else (dir,)
    return lambda hook: (
        hook.dir in dirs
        and (including_permanent or not hook.is_permanent)
        and (level is None or hook.context_level == level)
    )


def _count(hook: Hook) -> None:
    """Know of a hook of a single run for as long as anything holds it."""
    _alive_changed(1)
    weakref.finalize(hook, _alive_changed, -1).atexit = False


def _alive_changed(by: int) -> None:
    global _alive, _any_scoped
    with _LOCK:
        _alive += by
        _any_scoped = _alive > 0


def _named(function: Callable) -> str:
    """A function as an error names it."""
    return f"the hook {getattr(function, '__qualname__', None) or type(function).__name__}"
