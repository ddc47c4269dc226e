"""A capture that stays in memory."""

from dataclasses import replace

from torch import Tensor

from hooks.errors import MaterializationError
from hooks.memory import free_bytes
from interp.metrics import Resolved
from interp.recording.constants import layer_constants
from interp.recording.gradients import run_back
from interp.recording.plan import CapturePlan
from interp.recording.run import run_blocks
from interp.tensors.capture_data import CaptureData
from interp.tensors.gradients import Gradients
from interp.tensors.layers import LayerCapture


def capture_in_memory(plan: CapturePlan, metric: Resolved | None = None) -> CaptureData:
    """Run a plan, and the way back from a metric where there is one, and keep everything in memory."""
    _check_fits(plan, gradients=metric is not None)
    kept = _InMemory(plan)
    losses = run_blocks(plan if metric is None else replace(plan, streams=kept), kept)
    if metric is not None:
        run_back(plan, metric, kept)
    return CaptureData(
        cfg=plan.model.cfg,
        model_id=str(plan.model.cfg.model_name),
        tokens=plan.tokens[0].cpu(),
        str_tokens=plan.str_tokens,
        positions=plan.positions,
        loss=losses,
        provenance=plan.provenance,
        _layers=kept.layers,
        gradients=None if metric is None else Gradients(metric.name, kept.value, kept.gradients),
    )


class _InMemory:
    """Keeps what a pass leaves, and on the way back what that leaves."""

    def __init__(self, plan: CapturePlan):
        self.plan = plan
        self.layers: dict[int, LayerCapture] = {}
        self.streams: dict[int, Tensor] = {}
        self.gradients: dict[int, dict[str, Tensor]] = {}
        self.value = float("nan")

    def put(self, layer: int, tensors: dict[str, Tensor], resid: Tensor) -> None:
        """Keep a captured layer."""
        if layer in self.plan.steps:
            constants = layer_constants(self.plan.model, layer, self.plan.rope_length)
            self.layers[layer] = LayerCapture.of(self.plan.steps[layer], tensors, constants)

    def holds_stream(self, layer: int) -> bool:
        """Whether the residual stream before a block is there."""
        return layer in self.streams

    def stream(self, layer: int) -> Tensor:
        """The residual stream before a block."""
        return self.streams[layer]

    def put_stream(self, layer: int, resid: Tensor) -> None:
        """Keep it until the way back is past."""
        self.streams[layer] = resid

    def begun(self) -> tuple[int, Tensor] | None:
        """A pass in memory is never gone on with."""
        return None

    def begin(self, value: float, back: Tensor) -> None:
        """Keep the metric's value; the stream after the last block is of no more use."""
        self.value = value
        self.streams.pop(self.plan.model.cfg.n_layers)

    def put_gradients(self, layer: int, tensors: dict[str, Tensor], back: Tensor) -> None:
        """Keep the gradients of a captured layer, and let its stream go."""
        self.streams.pop(layer, None)
        if tensors:
            self.gradients[layer] = tensors


def _check_fits(plan: CapturePlan, *, gradients: bool) -> None:
    """Raise a MaterializationError when what is to be kept would not fit in free memory."""
    free, needed = free_bytes(plan.model.device), plan.n_bytes
    if gradients:
        needed += plan.gradient_bytes + plan.model.cfg.n_layers * plan.stream_bytes
    if needed > free:
        what = "q, k and v" if not gradients else "q, k, v, their gradients and the residual streams"
        raise MaterializationError(
            f"{what} of {plan.n_tokens:,} tokens take {needed / 1e9:.1f} GB in memory and {free / 1e9:.1f} "
            "GB are free: capture to disk with path=, or keep fewer layers or stages"
        )
