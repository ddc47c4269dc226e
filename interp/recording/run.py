"""The pass itself: one block at a time, keeping q, k and v of the layers asked for."""

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from hooks.base.inputs import predicted_tokens
from hooks.base.losses import where_predicted
from interp.common.progress import track
from interp.recording.plan import CapturePlan


class Sink(Protocol):
    """Where a pass puts what it keeps."""

    def put(self, layer: int, tensors: dict[str, Tensor], resid: Float[Tensor, "1 pos d_model"]) -> None:
        """Take what was kept of a block (q.pre_norm, …, k.final, v; nothing of most), and the stream after it."""
        ...


@torch.no_grad()
def run_blocks(
    plan: CapturePlan, sink: Sink, start: int = 0, resid: Float[Tensor, "1 pos d_model"] | None = None
) -> Float[Tensor, " predicted"]:
    """Run the model's blocks from `start` on, hand each to the sink, and return the loss of each predicted token.

    A plan without loss stops after its last layer, and returns nothing. The first token of each packed document is
    predicted from nothing: its loss is NaN.

    Args:
        plan: what to run and keep.
        sink: takes one block at a time; nothing of it is held here afterwards.
        start: how many blocks have run already.
        resid: the residual stream after them; None before the first.
    """
    model = plan.model
    packed = None if plan.documents is None else plan.positions[None].to(plan.tokens.device)
    stream = model.embed_tokens(plan.tokens, position_ids=packed) if resid is None else resid
    context = model.context(plan.tokens, position_ids=packed)
    with nullcontext() if plan.loss else model.ending_with(plan.n_blocks - 1):
        for layer in track(range(start, plan.n_blocks), "running the model"):
            stream = _block(plan, layer, stream, context, sink)
    if not plan.loss:
        return torch.empty(0)
    predicted = predicted_tokens(plan.tokens, None, context.documents)
    return where_predicted(model.residual_loss(stream, plan.tokens), predicted)[0].cpu()


def _block(plan: CapturePlan, layer: int, resid: Tensor, context: Any, sink: Sink) -> Tensor:
    """Run one block, put away what it leaves, and return the residual stream after it."""
    kept: dict[str, Tensor] = {}
    with plan.model.hooks(fwd_hooks=_keepers(plan, layer, kept)):
        resid = plan.model.blocks[layer](resid, context)
    if plan.streams is not None:
        plan.streams.put_stream(layer + 1, resid)
    sink.put(layer, kept, resid)
    return resid


def hook_points(plan: CapturePlan, layer: int) -> dict[str, str]:
    """The points at which what is kept of a layer passes, by the name that it is kept under; none of most layers."""
    if layer not in plan.steps:
        return {}
    found = {f"{x}.{stage}": f"hook_{x}_{stage}" for x in "qk" for stage in plan.stage_names(layer)}
    return {name: f"blocks.{layer}.attn.{point}" for name, point in (found | {"v": "hook_v_final"}).items()}


def _keepers(plan: CapturePlan, layer: int, kept: dict[str, Tensor]) -> list:
    """(name, hook) pairs that put the wanted tensors of one layer into `kept`."""

    def keeper(name: str):
        def keep(tensor: Tensor, hook: object) -> None:
            kept[name] = tensor.detach()[0]

        return keep

    return [(point, keeper(name)) for name, point in hook_points(plan, layer).items()]
