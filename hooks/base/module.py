"""Names on top of TransformerLens' HookedRootModule: aliases and globs work, and a wrong name raises."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens import hook_points as lens
from transformer_lens.utilities.slice import Slice

from hooks.base.cache import ActivationCache, check_full_fits
from hooks.base.registry import FULL_HOOKS, ROWS_HOOKS, HookRegistry, NameSelector
from hooks.base.tokenizing import is_text
from hooks.checks import choice, flag, shown, whole, wholes
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import HookConflictError, HookNameError, InputError
from hooks.modules.hook_point import Direction, HookPoint

HookPairs = Iterable[tuple[NameSelector, Callable]]
_RUNS = count(1)
NamesFilter = NameSelector | Sequence[str] | None


class NamedHooksModule(HookedRootModule):
    """A HookedRootModule whose hook names go through a `HookRegistry`.

    The base class gives an empty cache for a wrong filter, a KeyError for a wrong name, and slices the head axis of
    tensors it does not know under ``pos_slice``; here names are resolved, and positions sliced, by the registry.
    """

    registry: HookRegistry

    if TYPE_CHECKING:

        @property
        def cfg(self) -> HookedTransformerConfig:
            """The architecture."""
            ...

        @property
        def dtype(self) -> torch.dtype:
            """Type of the residual stream."""
            ...

        def _check_tokens(self, tokens: Any) -> Tensor: ...

        def to_tokens(self, text: Any) -> Tensor: ...  # noqa: D102

    def resident(self, layer: int, parts: Collection[str] = ()) -> AbstractContextManager[None]:
        """Have a block's weights in memory inside the ``with`` block; where all of them are, there is nothing to do."""
        return nullcontext()

    def ending_with(self, layer: int) -> AbstractContextManager[None]:
        """Run no block behind this one inside the ``with`` block; where all weights are there, it changes nothing."""
        return nullcontext()

    def hook_names(self, selector: NameSelector | None = None) -> list[str]:
        """Canonical hook names, all of them or those that a name, alias, glob or predicate selects."""
        return list(self.registry.infos) if selector is None else self.registry.resolve(selector)

    def add_hook(
        self,
        name: NameSelector,
        hook: Callable,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach `hook` to every point that `name` (canonical, alias, glob or predicate) selects, once each.

        It holds in every thread until `reset_hooks`; what is for one run belongs in `hooks`. See
        `hooks.modules.hook_point.HookPoint` for what a hook takes and returns.
        """
        dir, is_permanent = choice("dir", dir, ("fwd", "bwd")), flag("is_permanent", is_permanent)
        prepend, level = flag("prepend", prepend), None if level is None else whole("level", level)
        for canonical in self.registry.resolve(name):
            point = self.hook_dict[canonical]
            self.check_and_add_hook(
                point, canonical, hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend
            )

    def check_hooks_to_add(
        self,
        hook_point: lens.HookPoint,
        hook_point_name: str,
        hook: Callable,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> None:
        """Refuse what cannot work: full beside rows points of one layer, backward hooks on rows points."""
        parent, _, leaf = hook_point_name.rpartition(".")
        if leaf in ROWS_HOOKS and dir == "bwd":
            raise HookConflictError(
                f"{hook_point_name} takes no backward hook: its blocks are recomputed in the backward pass; "
                f"put the hook on {leaf.removesuffix('_rows')}, or differentiate through a forward hook"
            )
        others = {**dict.fromkeys(ROWS_HOOKS, FULL_HOOKS), **dict.fromkeys(FULL_HOOKS, ROWS_HOOKS)}.get(leaf, ())
        for other in others:
            if self.hook_dict[f"{parent}.{other}"].has_hooks():
                raise HookConflictError(
                    f"{hook_point_name} and {parent}.{other} cannot be hooked at once: one needs the whole n × n "
                    "tensor, the other blocks of rows; use one of them in this layer"
                )

    @contextmanager
    def hooks(
        self,
        fwd_hooks: HookPairs = (),
        bwd_hooks: HookPairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Self]:
        """Hooks for the passes that this thread (or task) runs inside the ``with`` block; other threads have none.

        The backward of such a pass has its hooks whenever and wherever it runs.

        Args:
            fwd_hooks: (name, hook) pairs; a name is a canonical one, an alias, a glob or a predicate.
            bwd_hooks: the same for gradients.
            reset_hooks_end: False leaves the hooks in this context until `reset_hooks`.
            clear_contexts: empty every point's ``ctx`` at the end as well.

        Raises:
            InputError: something else than pairs, or a function that cannot be called as ``hook(tensor, hook=point)``.
            HookNameError: a name matches nothing.
            HookConflictError: hooks that cannot run together.
        """
        forward, backward = _pairs("fwd_hooks", fwd_hooks), _pairs("bwd_hooks", bwd_hooks)
        run = next(_RUNS)
        try:
            for name, hook in forward:
                self.add_hook(name, hook, dir="fwd", level=run)
            for name, hook in backward:
                self.add_hook(name, hook, dir="bwd", level=run)
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, level=run)

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: HookPairs = (),
        bwd_hooks: HookPairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run the model once inside `hooks`, and return its output; other arguments go to forward."""
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self.forward(*model_args, **model_kwargs)

    def resolve_filter(self, names_filter: NamesFilter) -> list[str]:
        """Canonical names that a cache filter selects; None is every hook that fires once per forward.

        Raises:
            HookNameError: a name or predicate matches nothing, or a rows point was asked for by name.
        """
        infos = self.registry.infos
        if names_filter is None:
            return [name for name, info in infos.items() if info.fires not in ("rows mode", "on request")]
        several = isinstance(names_filter, Iterable) and not hasattr(names_filter, "shape")
        if not (isinstance(names_filter, str) or callable(names_filter) or several):
            raise HookNameError(
                f"names_filter={shown(names_filter)}: give a name, a glob, a predicate, or a list of them"
            )
        selectors = [names_filter] if isinstance(names_filter, str) or callable(names_filter) else list(names_filter)
        chosen: set[str] = set()
        for selector in selectors:
            names = self.registry.resolve(selector)
            kept = [name for name in names if infos[name].fires != "rows mode"]
            if not kept:
                raise HookNameError(
                    f"{names[0]} fires once per block of rows, so it cannot be cached; "
                    f"collect what you need in a hook: model.run_with_hooks(tokens, fwd_hooks=[({names[0]!r}, fn)])"
                )
            chosen.update(kept)
        return [name for name in infos if name in chosen]

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list, list]:
        """Forward and backward hooks that fill a dict; positions are sliced on the axis that the registry names."""
        store: dict[str, Tensor] = {} if cache is None else cache
        window = _window(pos_slice)
        self.is_caching = True

        def save(tensor: Tensor, hook: HookPoint, suffix: str = "") -> None:
            kept = tensor.detach()
            if pos_slice is not None:
                try:
                    kept = window.apply(kept, dim=self.registry.infos[str(hook.name)].position_axis)
                except IndexError as error:
                    raise InputError(f"pos_slice={shown(pos_slice)}: {hook.name} has no such position") from error
            if remove_batch_dim:
                kept = kept.squeeze(0)
            # A later in-place edit must not reach into the cache.
            store[f"{hook.name}{suffix}"] = kept.to(device) if device is not None else kept.clone()

        names = self.resolve_filter(names_filter)
        forward = [(name, save) for name in names]
        backward = [(name, partial(save, suffix="_grad")) for name in names] if incl_bwd else []
        return store, forward, backward

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Attach the caching hooks for the next forward passes; returns the dict that they fill."""
        store, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        self._add_all(forward, "fwd")
        self._add_all(backward, "bwd")
        return store

    def _add_all(self, hooks: Iterable[tuple[str, Callable]], dir: Direction) -> None:
        for name, hook in hooks:
            self.add_hook(name, hook, dir=dir)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: Any = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        return_cache_object: bool = True,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the model and return its output with an `ActivationCache` of every hook that the filter selects.

        Args:
            *model_args: passed to the model's forward.
            names_filter: name, alias, glob, predicate or a list of names; None caches every hook that fires once per
                forward, the full scores and patterns among them.
            device: where to keep the cache; the tensor's own device when None.
            remove_batch_dim: drop the batch axis (batch size 1 only).
            return_cache_object: False gives the plain dict.
            **kwargs: ``incl_bwd``, ``pos_slice``, ``reset_hooks_end`` and ``clear_contexts`` as in TransformerLens; all
                others go to forward.

        Raises:
            HookNameError: the filter matches nothing.
            MaterializationError: the full tensors that the filter selects would not fit in memory.
        """
        window = _window(kwargs.get("pos_slice"))
        self.check_cache_fits(self.resolve_filter(names_filter), *model_args)
        kept_on = None if device is None else torch.device(device)
        output, cache = super().run_with_cache(
            *model_args, names_filter=names_filter, device=kept_on, remove_batch_dim=remove_batch_dim, **kwargs
        )
        if not return_cache_object:
            return output, cache
        positions = kwargs.get("position_ids")
        if positions is not None:
            positions = window.apply(torch.as_tensor(positions), dim=-1)
        return output, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim, position_ids=positions)

    def check_cache_fits(self, names: list[str], *model_args: Any) -> None:
        """Raise MaterializationError when the n × n tensors that a cache asks for would not fit in free memory."""
        full = [name for name in names if self.registry.infos[name].fires == "full mode"]
        if full and model_args:
            stream = isinstance(model_args[0], Tensor) and model_args[0].ndim == 3  # for start_at_layer
            given = model_args[0][:, :, 0] if stream else model_args[0]
            ids = given if stream else self.to_tokens(given) if is_text(given) else self._check_tokens(given)
            check_full_fits(len(full), ids, self.cfg.n_heads, self.dtype)


def _pairs(name: str, given: Any) -> list[tuple[NameSelector, Callable]]:
    """(name, hook) pairs, checked for being pairs."""
    listed = isinstance(given, Iterable) and not isinstance(given, str | Mapping) and not hasattr(given, "shape")
    pairs: list[Any] = list(given) if listed else [given]
    wrong = [pair for pair in pairs if not (isinstance(pair, tuple | list) and len(pair) == 2)]
    if wrong or not listed:
        raise InputError(f"{name}={shown(wrong[0])}: give a list of (name, hook) pairs")
    return pairs


def _window(pos_slice: Any) -> Slice:
    """TransformerLens' slice of positions."""
    given: Any = pos_slice
    array = isinstance(pos_slice, Tensor | np.ndarray)
    one_axis = array and pos_slice.ndim == 1 and getattr(pos_slice, "layout", None) in (None, torch.strided)
    ends = list(pos_slice) if isinstance(pos_slice, list | tuple) or one_axis else [pos_slice]
    if isinstance(pos_slice, slice):
        ends = [pos_slice.start, pos_slice.stop, pos_slice.step]
    try:
        if not isinstance(pos_slice, Slice):
            ends = [end for end in ends if end is not None or isinstance(pos_slice, list)]
            wholes("pos_slice", ends, at_least=-(2**53), at_most=2**53)
        window = Slice.unwrap(given)
        step = getattr(window.slice, "step", None)
        if step is not None:
            whole("pos_slice", step, at_least=1)
        return window
    except (TypeError, ValueError, AssertionError, NotImplementedError, InputError) as error:
        raise InputError(
            f"pos_slice={shown(pos_slice)}: give one position, a tuple such as (start, stop), or a list of positions"
        ) from error
