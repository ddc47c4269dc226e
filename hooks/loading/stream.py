"""Weights that are read when they are used: a block's when it runs, the next one's meanwhile, and then let go."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from hooks import checks
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import ConfigError, InputError, StreamingWarning, WeightError
from hooks.loading.sources import Checkpoint
from hooks.loading.weights import Recipe, TakesWeights, read_weight, weight_recipes
from hooks.memory import free_bytes

EMBED, HEAD = "embed", "unembed"
_AHEAD = 2  # units that may be there before they are asked for; one is read ahead, a second stays if it is there
Parameters = dict[str, nn.Parameter]


class WeightStream:
    """Gives a model's modules their parameters while they run.

    What is read at once is a unit: the embedding, a block, or the final norm with the unembedding. While a unit is held
    the next one is read by a thread; of units that nobody holds only the last one and the next stay in memory. A tied
    embedding stays from its first use on, unless the pass is to end before the head.

    Args:
        checkpoint: what the model is built from.
        recipes: how each of its parameters is made.
        digests: SHA-256 of units that were read before, shared by all that stream the same weights.

    Attributes:
        reads: how often each of our parameters was read.
        digests: SHA-256 over names, types, shapes and bytes of each unit read so far.
    """

    def __init__(self, checkpoint: Checkpoint, recipes: Mapping[str, Recipe], digests: dict[str, str]):
        self._checkpoint, self._cfg = checkpoint, checkpoint.cfg
        self._units: dict[str, dict[str, Recipe]] = {unit: {} for unit in _order(checkpoint.cfg)}
        for name, recipe in recipes.items():
            self._units[unit_of(name)][name] = recipe
        self._order = list(self._units)
        self._lock = RLock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ropescope-weights")
        self._resident: dict[str, Future[Parameters]] = {}
        self._held: Counter[str] = Counter({EMBED: 1} if self._cfg.tie_word_embeddings else {})
        self._model: Any = None
        self._last = self._order[-1]  # behind which nothing is read ahead
        self.reads: Counter[str] = Counter()
        self.digests = digests

    @classmethod
    def of(cls, model: TakesWeights, checkpoint: Checkpoint) -> Self:
        """The stream of a checkpoint, for the model built from it on the meta device.

        Raises:
            WeightError: a tensor is missing, left over, of the wrong shape, or not floating point.
        """
        assert checkpoint.read is not None
        recipes = weight_recipes(model, checkpoint.family, checkpoint.weights, checkpoint.read, checkpoint.where)
        return cls(checkpoint, recipes, {})

    def shared_with(self, other: nn.Module) -> Self:
        """A stream of the same weights for the same model under other settings, as far as it has these parameters.

        Raises:
            InputError: a parameter of it is of another shape, or has no values.
        """
        known = {name: recipe for recipes in self._units.values() for name, recipe in recipes.items()}
        wanted = dict(other.named_parameters(remove_duplicate=False))
        for name, parameter in wanted.items():
            tied = name == "unembed.weight" and self._cfg.tie_word_embeddings
            if name not in known and parameter.is_meta and not tied:
                raise InputError(f"no values for {name}")
            if name in known and known[name].shape != parameter.shape:
                shapes = f"{tuple(known[name].shape)}: the model has shape {tuple(parameter.shape)}"
                raise InputError(f"cannot adopt {name} of shape {shapes}")
        kept = {name: recipe for name, recipe in known.items() if name in wanted}
        return type(self)(self._checkpoint, kept, self.digests)

    @property
    def device(self) -> torch.device:
        """Where weights are put."""
        return torch.device(self._cfg.device or "cpu")

    @property
    def stamp(self) -> str:
        """SHA-256 over what tells the weight files from others without reading them: names, sizes, times of change."""
        files = [f"{each.path.name} {each.stamp.size} {each.stamp.modified}" for each in self._checkpoint.files]
        return hashlib.sha256("\n".join(files).encode()).hexdigest()

    def bind(self, model: Any) -> None:
        """Become a model's stream: its parts are held whenever they run."""
        self._model, model.stream = model, self
        for unit, recipes in self._units.items():
            for name in {self._module_name(parameter) for parameter in recipes}:
                self._watch(model.get_submodule(name), unit)
            for parameter in recipes:
                self._clear(parameter)
        for module in model.modules():  # what no file has follows the weights
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None and not tensor.is_meta and tensor.device != self.device:
                        moved = tensor.detach().to(self.device)
                        store[name] = nn.Parameter(moved) if isinstance(tensor, nn.Parameter) else moved
        model.register_state_dict_pre_hook(_refuse_state)
        if self._cfg.tie_word_embeddings:
            self._watch(model.get_submodule("unembed"), EMBED, ahead=False)

    def _watch(self, module: nn.Module, unit: str, *, ahead: bool = True) -> None:
        """Hold a unit while a module runs, however it ends."""
        module.register_forward_pre_hook(partial(self._before, unit, ahead))
        module.register_forward_hook(partial(self._after, unit), always_call=True)

    def _before(self, unit: str, ahead: bool, *_: object) -> None:
        self._hold(unit, ahead=ahead)

    def _after(self, unit: str, *_: object) -> None:
        self._release(unit)

    @staticmethod
    def _module_name(parameter: str) -> str:
        """The module that runs as a whole: a block, or one of those around them."""
        parts = parameter.split(".")
        return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]

    @contextmanager
    def ending_with(self, unit: str) -> Iterator[None]:
        """Read nothing ahead behind a unit inside the ``with`` block, because the pass ends there.

        A tied embedding that no head will ask for again goes as any other unit does.
        """
        before, self._last = self._last, unit
        waits = self._cfg.tie_word_embeddings and unit != HEAD
        with self._lock:
            self._held[EMBED] -= waits
        try:
            yield
        finally:
            self._last = before
            with self._lock:
                self._held[EMBED] += waits

    @contextmanager
    def resident(self, unit: str, parts: Collection[str] = ()) -> Iterator[None]:
        """Have a unit's weights in the model inside the ``with`` block.

        Args:
            unit: which.
            parts: beginnings of the names that are needed, after the unit's; of a unit that is not there only these
                are read.
        """
        if parts and unit not in self._resident:
            names = [n for n in self._units[unit] if n.removeprefix(f"{unit}.").startswith(tuple(parts))]
            for name in names:
                self._put(name, self._read_one(unit, name))
            try:
                yield
            finally:
                with self._lock:
                    for name in names if unit not in self._resident else ():
                        self._clear(name)
            return
        self._hold(unit, ahead=False)
        try:
            yield
        finally:
            self._release(unit)

    def _hold(self, unit: str, *, ahead: bool = True) -> None:
        """Put a unit's parameters into the model, and begin to read the next."""
        with self._lock:
            self._held[unit] += 1
            at = self._order.index(unit)
            near = self._order[at : at + 1 + _AHEAD]
            for other in [u for u in self._resident if not self._held[u] and u not in near]:
                self._drop(other)
            for wanted in near[: 1 + (ahead and unit != self._last)]:
                if wanted not in self._resident:
                    self._resident[wanted] = self._reader.submit(self._read, wanted)
            found = self._resident[unit]
        try:
            parameters = found.result()
        except BaseException:
            with self._lock:
                self._held[unit] -= 1
                self._resident.pop(unit, None)
            raise
        with self._lock:
            for name, parameter in parameters.items():
                self._put(name, parameter)

    def _release(self, unit: str) -> None:
        """Let a unit go once another one is needed."""
        with self._lock:
            self._held[unit] -= 1

    def _drop(self, unit: str) -> None:
        """Free what a unit takes."""
        self._resident.pop(unit).cancel()
        for name in self._units[unit]:
            self._clear(name)

    def _read(self, unit: str) -> Parameters:
        """Read, check and convert a unit's parameters."""
        parameters = {name: self._read_one(unit, name) for name in self._units[unit]}
        if unit not in self.digests:
            self.digests[unit] = _digest(parameters)
        return parameters

    def _read_one(self, unit: str, name: str) -> nn.Parameter:
        """One parameter, whose values are looked at until its unit was read once."""
        read, where = self._checkpoint.read, self._checkpoint.where
        assert read is not None
        finite = self._checkpoint.check_finite and unit not in self.digests
        self.reads[name] += 1
        found = read_weight(self._units[unit][name], read, self._cfg, where, check_finite=finite)
        found.requires_grad = False
        return found

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        """Make a tensor the model's parameter of this name."""
        names = (name, "unembed.weight") if name == "embed.weight" and self._cfg.tie_word_embeddings else (name,)
        for each in names:
            module, _, leaf = each.rpartition(".")
            self._model.get_submodule(module)._parameters[leaf] = parameter

    def __deepcopy__(self, memo: object) -> Self:
        raise ConfigError("a streamed model cannot be copied: model.with_config() gives another one of its weights")

    def __reduce__(self) -> Any:
        raise ConfigError("a streamed model cannot be pickled: load it where it is needed, with from_pretrained")

    def _clear(self, name: str) -> None:
        """Leave a parameter of the same shape without values."""
        shape = self._units[unit_of(name)][name].shape
        empty = torch.empty(shape, dtype=self._cfg.dtype, device="meta")
        self._put(name, nn.Parameter(empty, requires_grad=False))


class StreamedWeights(nn.Module):
    """The part of a model that may have its weights from a stream."""

    stream: WeightStream | None = None  # gives the weights as they are used, where they are not held
    if TYPE_CHECKING:

        @property
        def device(self) -> torch.device:
            """Where the weights are."""
            ...

        @property
        def dtype(self) -> torch.dtype:
            """Type of the weights."""
            ...

    def resident(self, layer: int, parts: Collection[str] = ()) -> AbstractContextManager[None]:
        """Have a block's weights in memory inside the ``with`` block, also of a model that streams them.

        Args:
            layer: which block.
            parts: all that is needed of it, as beginnings of parameters' names ("attn.o_proj"); empty is everything.
        """
        return nullcontext() if self.stream is None else self.stream.resident(f"blocks.{layer}", parts)

    def ending_with(self, layer: int) -> AbstractContextManager[None]:
        """Run no block behind this one inside the ``with`` block: of a model that streams them none is read ahead."""
        return nullcontext() if self.stream is None else self.stream.ending_with(f"blocks.{layer}")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """What `to`, `float`, `cuda` and the like do; of a streamed model nothing can be moved or cast."""
        if self.stream is None:
            return super()._apply(fn, recurse)
        here = torch.empty(0, dtype=self.dtype, device=self.device)
        if (there := fn(here)).dtype != here.dtype or there.device != here.device:
            raise ConfigError(
                f"the weights of this model are streamed, as {here.dtype} on {here.device}: load it anew with "
                "from_pretrained(…, dtype=, device=)"
            )
        return self


def unit_of(parameter: str) -> str:
    """The unit that one of our parameters is read with."""
    parts = parameter.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else EMBED if parts[0] == "embed" else HEAD


def _order(cfg: HookedTransformerConfig) -> list[str]:
    """The units as a forward pass needs them."""
    return [EMBED, *(f"blocks.{layer}" for layer in range(cfg.n_layers)), HEAD]


def _digest(parameters: Mapping[str, nn.Parameter]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        weight = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refuse_state(*_: Any) -> None:
    """A state dict of weights that are not there would have none."""
    raise WeightError("the weights of this model are streamed, and its state_dict would hold none: use stream=False")


def streams(checkpoint: Checkpoint, stream: bool | None, n_bytes: int) -> bool:
    """Whether a model is to be streamed.

    Args:
        checkpoint: the model.
        stream: what its user says.
        n_bytes: what all its weights take.

    Raises:
        ConfigError: a model in memory is to be streamed.
    """
    if stream is not None and checks.flag("stream", stream, error=ConfigError) and checkpoint.read is None:
        raise ConfigError(f"stream=True with {checkpoint.where}, whose weights are in memory and in no file")
    if stream is not None or checkpoint.read is None:
        return bool(stream)
    free = free_bytes(checkpoint.cfg.device or "cpu")
    if n_bytes <= free:
        return False
    warnings.warn(
        f"the weights of {checkpoint.where} take {n_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: they are "
        "read from the file block by block, at each forward pass (stream=False holds them all the same)",
        StreamingWarning,
        stacklevel=3,
    )
    return True
