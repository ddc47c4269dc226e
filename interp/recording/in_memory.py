"""A capture that stays in memory."""

from torch import Tensor

from hooks.errors import MaterializationError
from hooks.memory import free_bytes
from interp.recording.constants import layer_constants
from interp.recording.plan import CapturePlan
from interp.recording.run import run_blocks
from interp.tensors.capture_data import CaptureData
from interp.tensors.layers import LayerCapture


def capture_in_memory(plan: CapturePlan) -> CaptureData:
    """Run a plan and keep everything in memory."""
    _check_fits(plan)
    kept = _InMemory(plan)
    losses = run_blocks(plan, kept)
    return CaptureData(
        cfg=plan.model.cfg,
        model_id=str(plan.model.cfg.model_name),
        tokens=plan.tokens[0].cpu(),
        str_tokens=plan.str_tokens,
        positions=plan.positions,
        loss=losses,
        provenance=plan.provenance,
        _layers=kept.layers,
    )


class _InMemory:
    """Keeps what a pass leaves."""

    def __init__(self, plan: CapturePlan):
        self.plan = plan
        self.layers: dict[int, LayerCapture] = {}

    def put(self, layer: int, tensors: dict[str, Tensor], resid: Tensor) -> None:
        """Keep a captured layer."""
        if layer in self.plan.steps:
            constants = layer_constants(self.plan.model, layer, self.plan.rope_length)
            self.layers[layer] = LayerCapture.of(self.plan.steps[layer], tensors, constants)


def _check_fits(plan: CapturePlan) -> None:
    """Raise a MaterializationError when what is to be kept would not fit in free memory."""
    free = free_bytes(plan.model.device)
    if plan.n_bytes > free:
        raise MaterializationError(
            f"q, k and v of {plan.n_tokens:,} tokens take {plan.n_bytes / 1e9:.1f} GB in memory and {free / 1e9:.1f} "
            "GB are free: capture to disk with path=, or keep fewer layers or stages"
        )
