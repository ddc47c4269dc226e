"""The way back: from a metric to the first captured layer, one block at a time, each run again with its graph."""

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from hooks import checks
from hooks.errors import InputError, StageError
from interp.common.progress import track
from interp.metrics import Metric, Resolved
from interp.recording.plan import CapturePlan
from interp.recording.run import hook_points


class GradientStore(Protocol):
    """Where the residual streams of the way forth lie, and where the gradients go."""

    def holds_stream(self, layer: int) -> bool:
        """Whether the residual stream before a block, or after the last one, is there."""
        ...

    def stream(self, layer: int) -> Float[Tensor, "1 pos d_model"]:
        """That stream, which is held."""
        ...

    def put_stream(self, layer: int, resid: Float[Tensor, "1 pos d_model"]) -> None:
        """Take it."""
        ...

    def begun(self) -> tuple[int, Float[Tensor, "1 pos d_model"]] | None:
        """The last block that the way back went through, and ∂m/∂ the stream before it; None before it began."""
        ...

    def begin(self, value: float, back: Float[Tensor, "1 pos d_model"]) -> None:
        """Take the metric's value and ∂m/∂ the stream after the last block."""
        ...

    def put_gradients(self, layer: int, tensors: dict[str, Tensor], back: Float[Tensor, "1 pos d_model"]) -> None:
        """Take the gradients of a block (of most nothing but the last), and ∂m/∂ the stream before it."""
        ...


def resolved_metric(plan: CapturePlan, metric: object) -> Resolved:
    """A metric on the text of a plan, looked up before anything runs, and noted in the plan's provenance.

    Raises:
        InputError: no metric, or a token outside the vocabulary.
        StageError: a model without an output head.
        TokenizerError: a token's text that is no token or several.
        PositionError: a position that the text does not have.
    """
    asked = checks.instance("gradient_of", metric, Metric, "a metric, such as metrics.logit(' Paris', position=-1)")
    if not getattr(plan.model, "has_head", True):
        raise StageError("this model was attached without its output head, so there is no logit to take a gradient of")
    places = None if plan.documents is None else plan.positions
    found = asked.resolve(plan.model, plan.tokens[0], places)
    plan.provenance["settings"]["gradient of"] = found.name
    return found


def run_back(plan: CapturePlan, metric: Resolved, store: GradientStore) -> None:
    """Take the gradient of a metric, block by block, and hand each block's to the store.

    The memory is that of one block's graph, O(n · d): attention is the library's own, which keeps no n × n tensor.
    Streams that the store does not hold are computed anew.

    Args:
        plan: what was captured; its hooks must be active as they were.
        metric: what the gradient is taken of.
        store: holds the streams, takes the gradients.

    Raises:
        InputError: a metric that is not finite on this text.
    """
    model, layers = plan.model, plan.model.cfg.n_layers
    lowest = min(plan.steps)
    packed = None if plan.documents is None else plan.positions[None].to(plan.tokens.device)
    with torch.no_grad():
        context = model.context(plan.tokens, position_ids=packed)
    found = store.begun()
    if found is None:
        _fill(plan, store, context, packed)
        value, back = metric_gradient(plan, metric, store.stream(layers))
        store.begin(value, back)
        found = layers, back
    done, back = found
    for layer in track(range(done - 1, lowest - 1, -1), "taking the gradient"):
        resid = _stream(plan, store, layer, context, packed)
        tensors, back = _block_gradient(plan, layer, resid, context, back)
        store.put_gradients(layer, tensors, back)


def metric_gradient(
    plan: CapturePlan, metric: Resolved, resid: Float[Tensor, "1 pos d_model"]
) -> tuple[float, Float[Tensor, "1 pos d_model"]]:
    """A metric and its gradient to the residual stream after the last block; logits only at the metric's positions."""
    with torch.enable_grad():
        # At the metric's positions alone: the final norm works on each by itself.
        at = metric.positions.to(resid.device)
        stream = resid[:, at].detach().requires_grad_()
        place = {int(position): i for i, position in enumerate(metric.positions)}

        def logits_at(positions: Tensor) -> Tensor:
            rows = torch.tensor([place[int(p)] for p in positions], device=stream.device)
            return plan.model.unembed_residual(stream[:, rows])[0]

        value = metric.of(logits_at)
        if not bool(torch.isfinite(value)):
            raise InputError(f"{metric.name} is {value.item()} on this text, of which there is no gradient")
        (part,) = torch.autograd.grad(value, stream)
    back = torch.zeros_like(resid)
    back[:, at] = part
    return float(value.detach()), back


def _fill(plan: CapturePlan, store: GradientStore, context: Any, packed: Tensor | None) -> None:
    """Run the blocks whose stream the store does not hold."""
    with torch.no_grad():
        for layer in range(1, plan.model.cfg.n_layers + 1):
            if not store.holds_stream(layer):
                resid = _stream(plan, store, layer - 1, context, packed)
                store.put_stream(layer, plan.model.blocks[layer - 1](resid, context))


@torch.no_grad()
def _stream(plan: CapturePlan, store: GradientStore, layer: int, context: Any, packed: Tensor | None) -> Tensor:
    """The residual stream before a block; that before the first is the embedding, which no store keeps."""
    if layer > 0 and store.holds_stream(layer):
        return store.stream(layer)
    if layer == 0:
        return plan.model.embed_tokens(plan.tokens, position_ids=packed)
    before = _stream(plan, store, layer - 1, context, packed)
    return plan.model.blocks[layer - 1](before, context)


def _block_gradient(
    plan: CapturePlan, layer: int, resid: Tensor, context: Any, back: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients of what is kept of a block, and of the stream before it, from that of the stream after it."""
    kept: dict[str, Tensor] = {}

    def keeper(name: str):
        def keep(tensor: Tensor, hook: object) -> None:
            kept[name] = tensor

        return keep

    points = hook_points(plan, layer) | ({"z": f"blocks.{layer}.attn.hook_z"} if layer in plan.steps else {})
    with plan.model.resident(layer), torch.enable_grad():
        stream = resid.detach().requires_grad_()
        with plan.model.hooks(fwd_hooks=[(point, keeper(name)) for name, point in points.items()]):
            out = plan.model.blocks[layer](stream, context)
        # Nothing comes back to what a hook put something else in the place of.
        found = torch.autograd.grad(out, [stream, *kept.values()], back.to(out), allow_unused=True)
    asked = [stream, *kept.values()]
    before, *rest = (torch.zeros_like(x) if g is None else g for x, g in zip(asked, found, strict=True))
    return {name: g.detach()[0] for name, g in zip(kept, rest, strict=True)}, before.detach()
