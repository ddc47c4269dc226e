"""How much memory a device has left, asked in one place."""

import psutil
import torch


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be taken on a device: CUDA's and Metal's own count, elsewhere the machine's free memory.

    What torch's caching allocator holds and does not use counts as free.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    if device.type == "mps":  # shared with the machine, up to a limit of its own
        return min(free, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return free
