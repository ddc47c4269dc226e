"""What a patch is taken from: a cache, or a capture, of a run on as many tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from hooks.checks import shown
from hooks.errors import ConfigError, InputError

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint


@runtime_checkable
class HoldsHeads(Protocol):
    """A capture, as far as patches need one."""

    def z(self, layer: int) -> Float[Tensor, "pos head d_head"]:
        """What each head of a layer gives."""
        ...


class Cache(Protocol):
    """A cache: tensors by hook name, led by a batch axis or not."""

    def __getitem__(self, name: str, /) -> Tensor:
        """The tensor of one hook."""
        ...


Source = Cache | HoldsHeads


def check_source(source: object, *, heads: bool) -> None:
    """Raise a ConfigError for what holds no tensors.

    Args:
        source: what the caller gave.
        heads: whether a capture will do, which holds what heads give, but not the residual stream.
    """
    capture = isinstance(source, HoldsHeads)
    if capture and not heads:
        raise ConfigError(
            f"{shown(source)} is a capture, which holds no residual stream: give a cache from model.run_with_cache"
        )
    if not capture and (isinstance(source, str | Tensor | list | tuple) or not hasattr(source, "__getitem__")):
        what = "a cache from model.run_with_cache" + (", or a capture" if heads else "")
        raise ConfigError(f"{shown(source)} is no source: give {what}")


def from_source(source: Source, x: Tensor, hook: "HookPoint", layer: int | None = None) -> Tensor:
    """The source's tensor of a hook, like the one that the hook is given, ready to be put in its place.

    Args:
        source: a cache, or a capture (of ``hook_z``). One sequence serves every row of a batch.
        x: the hook's tensor, [batch pos …].
        hook: where it is.
        layer: the layer that a capture is asked for.

    Raises:
        InputError: the source lacks this tensor, or has it of another shape.
    """
    if isinstance(source, HoldsHeads):
        found = source.z(cast(int, layer))
    else:
        try:
            found = cast(Mapping[str, Any], source)[str(hook.name)]
        except KeyError:
            raise InputError(f"the cache to patch from holds no {hook.name}: make it with that name") from None
    found = found if found.ndim == x.ndim else found[None]
    if found.shape[1:] != x.shape[1:] or found.shape[0] not in (1, x.shape[0]):
        raise InputError(
            f"{hook.name} is {tuple(x.shape)} here and {tuple(found.shape)} in what it is patched from: places are "
            "matched one by one, so both runs read as many tokens at once (a step of generation reads one)"
        )
    return found.to(device=x.device, dtype=x.dtype).expand(x.shape)
