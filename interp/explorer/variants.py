"""q and k of a head as the run had them, at a stage, after other steps, or under another schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from hooks.errors import StageError
from interp.analyses.counterfactual.recompute import recompute
from interp.analyses.counterfactual.schedules import schedule_of, steps_under
from interp.analyses.counterfactual.variants import step_variant
from interp.analyses.patterns.head_rows import HeadRows
from interp.explorer.asking import Variant
from interp.tensors.capture_data import CaptureData


@dataclass(frozen=True)
class Side:
    """One head as pixels are made of it: contiguous q and k, float32 or better, and which keys each query sees."""

    rows: HeadRows

    @cached_property
    def norms(self) -> tuple[Float[Tensor, " query"], Float[Tensor, " key"]]:
        """‖q_i‖ times the scale, and ‖k_j‖: no score is larger than their product."""
        q, k = (torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32) for x in (self.rows.q, self.rows.k))
        return q * abs(self.rows.spec.scale), k

    @property
    def n_bytes(self) -> int:
        """Bytes of q and k."""
        return sum(x.numel() * x.element_size() for x in (self.rows.q, self.rows.k))


def side_of(cap: CaptureData, layer: int, head: int, variant: Variant | None) -> Side:
    """A head under a variant.

    Raises:
        StageError: a layer or stage that the capture does not hold, steps that the layer does not have, or no stage to
            start from.
        PositionError: no such head.
        ConfigError: a schedule that does not fit the model.
    """
    rows = HeadRows.of(cap, layer, head)
    if variant is not None:
        q, k = _tensors(cap, layer, variant)
        rows = replace(rows, q=q[:, head], k=k[:, head // (q.shape[1] // k.shape[1])])
    kind = torch.promote_types(rows.q.dtype, torch.float32)
    return Side(replace(rows, q=rows.q.cpu().to(kind).contiguous(), k=rows.k.cpu().to(kind).contiguous()))


def _tensors(cap: CaptureData, layer: int, variant: Variant) -> tuple[Tensor, Tensor]:
    """All heads' q and k of a layer under a variant."""
    if variant.stage is not None:
        return cap.q(layer, variant.stage), cap.k(layer, variant.stage)
    if variant.steps is not None:
        found, why = step_variant(cap, layer, variant.steps)
        if found is None:
            raise StageError(f"layer {layer}: {why}")
        steps, rope = found.steps, found.cfg.rope_for(layer)
    else:
        by_type = isinstance(cap.cfg.rope, Mapping)
        rope = schedule_of(cap, layer, {cap.cfg.layer_type(layer): variant.rope} if by_type else variant.rope)
        steps = steps_under(cap, layer, rope)
    q, k = (recompute(cap, layer, tensor, steps, rope) for tensor in ("q", "k"))
    return q, k
