"""What the command line sets for its own process, and for those that it starts; petm as a library sets none of it."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ONE_GIB = 1 << 30


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


def import_from_here() -> None:
    """Lets ``module:factory`` name a module in the current folder; called just before it is imported.

    Earlier, what lies in that folder would take the place of libraries that are imported meanwhile.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
