"""The threads of a worker: as many as its scheduler counts on, so that the workers of a machine share its cores."""


def take_share() -> int:
    """Set torch's and numba's threads to the share of the worker that this runs on; gives how many that are."""
    import numba
    import torch
    from distributed import get_worker

    share = int(get_worker().state.nthreads)
    torch.set_num_threads(share)
    most: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    numba.set_num_threads(min(share, most))
    return share
