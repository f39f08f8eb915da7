"""What libraries read from the environment before a process starts."""

import ctypes
import os
import sys

# glibc gives freed activations back to the kernel and faults them in again at every layer: keeping them makes CPU
# synthesis of large batches 1.4 times faster. OpenMP's threads spin while they wait, which makes a process beside
# another one on the same cores several times slower.
PROCESS_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "OMP_WAIT_POLICY": "PASSIVE",
}

# Names of malloc.h, and the most that `mallopt` takes: as good as the 4 GiB above.
_MALLOPT = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
_MOST_BYTES = 2**31 - 1


def restart_with_process_settings() -> None:
    """Replace this process by itself with the settings in its environment. What the user has set stays."""
    missing = {name: value for name, value in PROCESS_SETTINGS.items() if name not in os.environ}
    if sys.platform != "linux" or not missing:
        return
    os.environ.update(missing)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def take_process_settings() -> None:
    """The same for a process that is not to be replaced, such as a notebook's: what can still be set is set.

    OpenMP reads its setting once, when PyTorch is imported: call this before. What the user has set stays.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    for name, parameter in _MALLOPT.items():
        if name not in os.environ and hasattr(libc, "mallopt"):
            libc.mallopt(parameter, _MOST_BYTES)
    for name, value in PROCESS_SETTINGS.items():
        os.environ.setdefault(name, value)
