"""Memory that ends where an array ends: a read or a write outside of it ends the process."""

import ctypes
import mmap
import threading

import numpy as np

_PAGE = mmap.PAGESIZE
_ONE_AT_A_TIME = threading.Lock()


def guarded(array, side):
    """A copy whose first ("start") or last ("end") element lies at a page that may not be touched."""
    size = -(-array.nbytes // _PAGE) * _PAGE
    region = mmap.mmap(-1, size + 2 * _PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(region))
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (base, base + _PAGE + size):
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = _PAGE if side == "start" else _PAGE + size - array.nbytes
    copy = np.frombuffer(region, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


def on_guarded_memory(function, side):
    """The function, run on copies of every array in its arguments, which then take over what it wrote."""

    def run(*args):
        pairs = []

        def move(x):
            if isinstance(x, np.ndarray):
                pairs.append((x, guarded(x, side)))
                return pairs[-1][1]
            if isinstance(x, tuple):
                return type(x)(*map(move, x))
            return x

        with _ONE_AT_A_TIME:  # threads share the results, each its own rows
            out = function(*map(move, args))
            for original, copy in pairs:
                original[...] = copy
        return out

    return run
