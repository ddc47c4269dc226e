"""watch_scores: the largest score of each head at every step of a training loop, beside what the weights prove."""

import math
from collections.abc import Callable
from typing import Any, Self, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from hooks.attached.transformer import AttachedTransformer
from hooks.checks import shown
from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError
from hooks.functional.extremes import score_extremes
from hooks.functional.place import Place
from hooks.model import HookedTransformer
from hooks.modules.watching import watch_attention
from interp.analyses.scores.layer_bounds import no_bound, proven_bound
from interp.common.labels import labelled, result_of
from interp.recording.constants import score_constants
from interp.training.live import LiveFigure
from interp.training.schema import WATCH_SCORES

OnStep = Callable[[int, dict[str, float]], Any]
_FLOAT16 = float(torch.finfo(torch.float16).max)


def watch_scores(model: HookedTransformer | AttachedTransformer, on_step: OnStep | None = None) -> "ScoreWatch":
    """Watch the smallest and the largest score of each head while a model trains, exactly, at every step.

    A context manager around the training loop, which stays as it is: a step is what lies between two steps of any
    torch optimizer that holds parameters of the model, so gradients may be accumulated over several forward passes.
    Passes without gradients do not count. q and k are those that enter attention, under autocast in the type in which
    attention multiplies them; their products are float32 or better.

        with watch_scores(model) as watch:
            for tokens in batches:
                model(tokens, "loss").backward()
                optimizer.step()
                optimizer.zero_grad()
        watch.dataset()

    Args:
        model: a HookedTransformer, or a transformers model that ``HookedTransformer.attach`` has attached; that one
            may also be called itself.
        on_step: called after each step with its number, from 0, and numbers by name, such as
            ``{"score_max/L0H1": 3.2, "score_min/L0H1": -4.5, "bound/L0H1": 8.0}``, for a logger:
            ``lambda step, numbers: wandb.log(numbers, step=step)``.

    Returns:
        What watches; ``dataset()`` has the numbers, ``show()`` a figure in Jupyter that follows the training.

    Raises:
        InputError: no such model, or nothing that can be called.
    """
    return ScoreWatch(model, on_step)


class ScoreWatch:
    """What `watch_scores` returns: open while the model trains, readable during and after it.

    Args:
        model: the model.
        on_step: what gets the numbers of each step.

    Raises:
        InputError: as of `watch_scores`.
    """

    def __init__(self, model: HookedTransformer | AttachedTransformer, on_step: OnStep | None = None):
        if not isinstance(model, HookedTransformer | AttachedTransformer):
            raise InputError(
                f"watch_scores needs a HookedTransformer, and this is a {type(model).__name__}: give "
                "HookedTransformer.attach(model) for a transformers model"
            )
        if isinstance(model, HookedTransformer) and model.stream is not None:
            raise InputError(
                "watch_scores needs weights that can be trained, and this model streams them: load it with "
                "from_pretrained(…, stream=False)"
            )
        if on_step is not None and not callable(on_step):
            raise InputError(f"on_step={shown(on_step)} cannot be called: give a function of a step and its numbers")
        self.model, self._on_step = model, on_step
        attached = isinstance(model, AttachedTransformer)
        self.layers = model.attending_layers if attached else tuple(range(model.cfg.n_layers))
        self._parameters = {id(p) for p in (model.original_model if attached else model).parameters()}
        self._steps = {layer: model.attention_steps(layer, "q") for layer in self.layers}
        self._reasons = {layer: self._no_bound(layer) for layer in self.layers}
        self._pending: dict[int, tuple[Tensor, Tensor, np.ndarray]] = {}
        self._taken: list[np.ndarray] = []
        self._off: list[Callable[[], None]] = []
        self._live: LiveFigure | None = None

    def __enter__(self) -> Self:
        for layer in self.layers:
            self._off.append(watch_attention(cast(nn.Module, self.model.blocks[layer].attn), self._watcher(layer)))
        self._off.append(register_optimizer_step_post_hook(self._stepped).remove)
        return self

    def __exit__(self, *_: object) -> None:
        for off in self._off:
            off()
        self._off, self._pending = [], {}
        if self._live is not None and self._taken:
            self._live.update(self.dataset())

    def step(self) -> None:
        """End a step by hand, where what updates the weights is no torch optimizer."""
        if not self._pending:
            return
        numbers = np.full((3, len(self.layers), self.model.cfg.n_heads), np.nan)
        for row, layer in enumerate(self.layers):
            if layer in self._pending:
                low, high, bound = self._pending[layer]
                numbers[:2, row] = torch.stack([high, low]).tolist()
                numbers[2, row] = bound
        self._pending = {}
        self._taken.append(numbers.astype(np.float32))
        if self._on_step is not None:
            self._on_step(len(self._taken) - 1, self._named(numbers))
        if self._live is not None and self._live.due():
            self._live.update(self.dataset())

    def dataset(self) -> xr.Dataset:
        """The steps so far.

        Returns:
            Dataset over (step, layer, head): score_max, score_min, bound; over (layer): bound_reason, float16_limit.

        Raises:
            InputError: no step has ended yet.
        """
        if not self._taken:
            raise InputError(
                "no step was watched: run the training loop inside `with watch_scores(model) as watch:`; a step ends "
                "with optimizer.step(), or with watch.step() where no torch optimizer has the model's parameters"
            )
        high, low, bound = np.stack(self._taken, axis=1)
        dims = ("step", "layer", "head")
        out = xr.Dataset(
            {
                "score_max": (dims, high),
                "score_min": (dims, low),
                "bound": (dims, np.where(np.isfinite(bound), bound, np.nan)),
                "bound_reason": ("layer", list(self._reasons.values())),
                "float16_limit": ("layer", [_float16_limit(self.model.attention_spec(x)) for x in self.layers]),
            },
            {"step": np.arange(len(high)), "layer": list(self.layers), "head": np.arange(high.shape[2])},
        )
        return result_of("watch_scores", labelled(out, WATCH_SCORES), "largest score of each head at each step")

    def show(self) -> None:
        """Show a figure in Jupyter that follows the training, redrawn every other second.

        Raises:
            InputError: there is no Jupyter to show it in.
        """
        self._live = LiveFigure()
        if self._taken:
            self._live.update(self.dataset())

    def _watcher(self, layer: int) -> Callable[[Tensor, Tensor, AttentionSpec, Place], None]:
        """What looks at one layer."""

        @torch.no_grad()
        def watch(q: Tensor, k: Tensor, spec: AttentionSpec, place: Place) -> None:
            low, high = score_extremes(_as_multiplied(q.detach()), _as_multiplied(k.detach()), spec, place)
            bound = np.full(1, np.inf) if self._reasons[layer] else self._bound(layer)
            if layer in self._pending:
                before = self._pending[layer]
                low, high = torch.minimum(before[0], low), torch.maximum(before[1], high)
                bound = np.maximum(before[2], bound)
            self._pending[layer] = low, high, bound

        def watch_training(q: Tensor, k: Tensor, spec: AttentionSpec, place: Place) -> None:
            if torch.is_grad_enabled():
                watch(q, k, spec, place)

        return watch_training

    def _stepped(self, optimizer: Optimizer, _: tuple, __: dict) -> None:
        """After the step of any optimizer."""
        held = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        if any(parameter in self._parameters for parameter in held):
            self.step()

    def _named(self, numbers: np.ndarray) -> dict[str, float]:
        """The numbers of one step by name, without those that are not there."""
        return {
            f"{name}/L{layer}H{head}": float(numbers[kind, row, head])
            for kind, name in enumerate(("score_max", "score_min", "bound"))
            for row, layer in enumerate(self.layers)
            for head in range(numbers.shape[2])
            if name != "bound" or math.isfinite(numbers[kind, row, head])
        }

    def _bound(self, layer: int) -> Float[np.ndarray, " head"]:
        """What the weights prove now of every text, whatever its length."""
        constants = score_constants(self.model, layer, 1)
        gains = (constants.gain_q, constants.gain_k, constants.bias_q, constants.bias_k)
        if not all(bool(gain.isfinite().all()) for gain in gains if gain is not None):
            return np.full(1, np.nan)  # a training that has come to grief is watched to its end
        return proven_bound(constants, layer, self.model.cfg, self._steps[layer])

    def _no_bound(self, layer: int) -> str:
        """Why a layer has no bound, which training does not change; empty where it has one."""
        if np.isfinite(self._bound(layer)).all():
            return ""
        return no_bound(score_constants(self.model, layer, 1), layer, self.model.cfg, self._steps[layer])


def _as_multiplied(x: Tensor) -> Tensor:
    """One of q and k in the type in which attention multiplies it: autocast rounds what is still float32."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype == torch.float32:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def _float16_limit(spec: AttentionSpec) -> float:
    """The score at which q·k reaches float16's largest number."""
    limit = _FLOAT16 * spec.scale
    return limit if spec.softcap is None else spec.softcap * math.tanh(limit / spec.softcap)
