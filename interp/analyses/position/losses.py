"""Loss by position: how well the model predicts the next token as it has more and more to look back on."""

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hooks import checks
from hooks.errors import StageError
from interp.analyses.position.schema import LOSS_BY_POSITION
from interp.common.labels import labelled, result_of
from interp.tensors.capture_data import CaptureData, check_capture


def loss_by_position(cap: CaptureData, bins: int = 32) -> xr.Dataset:
    """Mean loss of the predicted tokens in equal stretches of positions.

    Returns:
        loss_mean [nats], loss_stderr [nats] and count over position_bin, with coordinates first_position and
        last_position of the predicted tokens; loss [nats] and running_mean [nats] over position.

    Raises:
        StageError: the capture holds no loss.
        InputError: bins below 1, or a capture of packed documents.
    """
    if not len(check_capture(cap).loss):
        raise StageError(
            "this capture holds no loss: it is not complete, or was made from a cache or with loss=False; "
            "capture(model, text) holds it"
        )
    cap.check_one_text("loss_by_position")
    return binned_loss(cap.loss, cap.positions, bins)


def binned_loss(nll: Float[Tensor, " predicted"], positions: Int[Tensor, " pos"], bins: int = 32) -> xr.Dataset:
    """`loss_by_position` of losses that no capture holds.

    Args:
        nll: −ln p of each token but the first, in nats.
        positions: position of every token.
        bins: stretches of equal length.

    Returns:
        The Dataset of `loss_by_position`.
    """
    bins = checks.whole("bins", bins, at_least=1)
    loss, position = nll.cpu().double().numpy(), positions.cpu().numpy()[1:]
    starts = np.unique(np.linspace(0, len(loss), min(bins, len(loss)) + 1).astype(int))[:-1]
    count = np.diff(np.append(starts, len(loss)))
    mean = np.add.reduceat(loss, starts) / count
    variance = np.add.reduceat((loss - np.repeat(mean, count)) ** 2, starts) / np.where(count > 1, count - 1, np.nan)
    values = {
        "loss": loss,
        "running_mean": np.cumsum(loss) / np.arange(1, len(loss) + 1),
        "loss_mean": mean,
        "loss_stderr": np.sqrt(variance / count),
        "count": count,
    }
    result = xr.Dataset(
        {name: (LOSS_BY_POSITION[name].dims, x) for name, x in values.items()},
        coords={
            "position": position,
            "first_position": ("position_bin", position[starts]),
            "last_position": ("position_bin", position[starts + count - 1]),
        },
    )
    return result_of("loss_by_position", labelled(result, LOSS_BY_POSITION), "loss of the next token by position")
