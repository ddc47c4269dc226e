"""Later stages of q and k from earlier ones: clip, norm and rotation once more, operation by operation as the model."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooks import HookedTransformerConfig
from hooks.functional.rope import cos_and_sin, rotate
from hooks.modules.qk_norm import QKNorm
from hooks.modules.rotary import rotation_dtype
from interp.tensors.constants import LayerConstants

_ROW_BYTES = 2 * 2**20  # of q derived at once: its temporaries stay in the processor's cache


class Derivation:
    """The steps of one layer, taken with what a capture keeps of its weights.

    Args:
        cfg: the model's configuration.
        layer: which layer.
        steps: clip, norm and rope in the order of the layer.
        constants: its gains and frequencies.
        positions: position of each token.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig,
        layer: int,
        steps: tuple[str, ...],
        constants: LayerConstants,
        positions: Int[Tensor, " pos"],
    ):
        self._cfg, self._steps, self._positions = cfg, steps, positions
        self._rope, self._constants = cfg.rope_for(layer), constants
        gains = {"q": (constants.gain_q, constants.bias_q), "k": (constants.gain_k, constants.bias_k)}
        self._norms = {which: _norm(cfg, *found) for which, found in gains.items()}

    def knows(self, which: str, first: int, last: int) -> bool:
        """Whether everything is known that the steps from one stage to another need."""
        known = {
            "clip": self._cfg.clip_qkv is not None,
            "norm": self._norms[which] is not None,
            "rope": self._rope is not None and self._constants.inv_freq is not None,
        }
        return all(known[step] for step in self._steps[first:last])

    @torch.no_grad()
    def rows(
        self, which: str, x: Float[Tensor, "row head d_head"], index: Int[Tensor, " row"] | slice, first: int, last: int
    ) -> Float[Tensor, "row head d_head"]:
        """Some rows of q or k at a later stage; a row does not depend on the others.

        Args:
            which: "q" or "k".
            x: these rows at the earlier stage.
            index: which tokens they are of.
            first: how many steps are behind x.
            last: how many are behind the result.
        """
        x = x[None]
        for step in self._steps[first:last]:
            if step == "clip":
                assert self._cfg.clip_qkv is not None
                x = x.clamp(-self._cfg.clip_qkv, self._cfg.clip_qkv)
            elif step == "norm":
                x = self._normed(which, x)
            else:
                x = self._rotated(x, self._positions[index])
        return x[0]

    def pieces(
        self, which: str, x: Float[Tensor, "pos head d_head"], first: int, last: int
    ) -> Iterator[tuple[slice, Float[Tensor, "row head d_head"]]]:
        """All rows at a later stage, some at a time, each with their place."""
        at_once = max(1, _ROW_BYTES // (x[:1].nbytes or 1))
        for start in range(0, len(x), at_once):
            place = slice(start, min(start + at_once, len(x)))
            yield place, self.rows(which, x[place], place, first, last)

    def _normed(self, which: str, x: Tensor) -> Tensor:
        """Behind the QK-norm."""
        norm = self._norms[which]
        assert norm is not None
        return norm(x)

    def _rotated(self, x: Tensor, positions: Int[Tensor, " row"]) -> Tensor:
        """Behind the rotation."""
        rope, frequencies = self._rope, self._constants.inv_freq
        assert rope is not None and frequencies is not None
        cos, sin = cos_and_sin(
            positions[None],
            frequencies,
            self._constants.attention_factor,
            precision=rope.precision,
            dtype=rotation_dtype(self._cfg, x.dtype),
        )
        return rotate(x, cos, sin, interleaved=bool(rope.interleaved), in_float32=self._cfg.rope_in_float32)


def _norm(cfg: HookedTransformerConfig, gain: Tensor | None, bias: Tensor | None) -> QKNorm | None:
    """The layer's QK-norm from its gain for each head, in which its offset and fixed scale are."""
    if cfg.qk_norm is None or gain is None or (bias is not None and cfg.qk_norm.kind != "layer"):
        return None
    full = cfg.qk_norm.scope == "full"
    scope, has_bias = "full" if full else "per_head", bias is not None
    plain = replace(cfg.qk_norm, scope=scope, affine=True, bias=has_bias, unit_offset=False, scale=1.0)
    norm = QKNorm(plain, *gain.shape)
    norm.weight = nn.Parameter(gain.flatten() if full else gain, requires_grad=False)
    if bias is not None:
        norm.bias = nn.Parameter(bias.flatten() if full else bias, requires_grad=False)
    return norm
