"""Settings of the command line's own processes; petm as a library changes none of them."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ONE_GIB = 1 << 30


def keep_large_blocks() -> None:
    """Keeps freed blocks of up to 1 GiB in this process, where the C library is glibc.

    Otherwise the kernel zeroes the same megabytes at each training step on a CPU: a quarter of the time on the paper's
    network.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has no mallopt
        return
    mallopt(_M_MMAP_THRESHOLD, _ONE_GIB)
    mallopt(_M_TRIM_THRESHOLD, _ONE_GIB)


def import_from_here() -> None:
    """Makes modules in the current folder importable for ``module:factory``.

    Called just before that import, as files in the folder would shadow libraries that are imported later.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
