"""Patching of the residual stream, and of what a block adds to it, ready to hook."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from hooks.errors import InputError
from hooks.recipes.heads import replacing
from hooks.recipes.sources import Cache, check_source, from_source

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint

_POINT = re.compile(r"hook_embed$|blocks\.\d+\.hook_(resid_(pre|mid|post)|attn_out|mlp_out)$")


class StreamHook(Protocol):
    """A hook function for a point of the residual stream."""

    def __call__(
        self, stream: Float[Tensor, "batch pos d_model"], /, *, hook: "HookPoint"
    ) -> Float[Tensor, "batch pos d_model"]:
        """The edited stream."""
        ...


def patch_residual(source: Cache, positions: Iterable[int] | Int[Tensor, " n"] | None = None) -> StreamHook:
    """Put the residual stream of another run, or what a block added to it, in the place of this one's.

    It goes on ``hook_embed``, ``hook_resid_pre``, ``hook_resid_mid``, ``hook_resid_post``, ``hook_attn_out`` or
    ``hook_mlp_out``, and takes the tensor of the same name from the source:

        model.run_with_hooks(tokens, fwd_hooks=[("blocks.5.hook_resid_pre", recipes.patch_residual(cache, [8]))])

    Args:
        source: a cache that holds the tensor. Both runs read the same number of tokens; one sequence serves every row
            of a batch.
        positions: places in the sequence, counted from 0 with any padding; all when None.

    Raises:
        ConfigError: an empty set or a negative position, no cache.
        InputError: at run time, a position that is not there, another point, a cache without this tensor or with
            another number of tokens.

    Source: Meng et al. 2022 (arXiv:2202.05262), section 2.
    """
    check_source(source, heads=False)
    put = replacing(positions)

    def recipe(stream: Tensor, /, *, hook: "HookPoint") -> Tensor:
        if not _POINT.search(str(hook.name)):
            raise InputError(
                f"{hook.name} is no point of the residual stream: put the recipe on hook_embed, hook_resid_pre, "
                "hook_resid_mid, hook_resid_post, hook_attn_out or hook_mlp_out"
            )
        return put(stream, from_source(source, stream, hook), hook)

    return recipe
