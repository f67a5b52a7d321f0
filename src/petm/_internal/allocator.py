"""The C allocator's habit of giving large blocks back to the kernel after each step, and how to break it."""

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ONE_GIB = 1 << 30


@cache
def keep_large_blocks() -> None:
    """Lets this process keep freed blocks of up to 1 GiB for its next step, where the C library is glibc.

    Otherwise each training step on a CPU asks the kernel anew for the same megabytes and waits while it zeroes them:
    a quarter of the time on the paper's network.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has no mallopt, and does not need it
        return
    mallopt(_M_MMAP_THRESHOLD, _ONE_GIB)
    mallopt(_M_TRIM_THRESHOLD, _ONE_GIB)


def give_back_blocks() -> None:
    """Gives freed memory back to the system between two computations of different kinds, where the C library is glibc.

    What one of them has used and freed, in blocks of its own sizes, the next can rarely use: their peaks would add up.
    """
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
