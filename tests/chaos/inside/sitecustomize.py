"""What goes wrong inside a worker. Python imports this module at its start where PYTHONPATH leads to it.

STORM_INSIDE holds a JSON list of {what, where, seed, tar, marker}: `where` is "encode" (in an encoder thread, at the
sample of that seed) or "stored" (when the store has taken the tar of that name). `marker` is a file's path that tells
that it happened; what is to happen once happens to whoever makes that file. STORM_DRAG holds the seconds that each
sample's encoding is to take longer.
"""

import faulthandler
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

_MEGABYTE = 1 << 20
_ALWAYS = ("poison", "raise")


def _strike(fault):
    try:
        os.close(os.open(fault["marker"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        if fault["what"] not in _ALWAYS:
            return
    what = fault["what"]
    if what in ("exit", "exit after the tar", "poison"):
        os._exit(1)
    if what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "raise":
        raise RuntimeError(f"seed {fault['seed']} cannot be encoded")
    if what == "exhaust memory":
        _exhaust_memory()
    if what == "hog memory":
        _hog_memory(int(os.environ["STORM_HOG_MEGABYTES"]))


def _exhaust_memory():
    """A true MemoryError: the process may have little more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 16 * _MEGABYTE, resource.getrlimit(resource.RLIMIT_AS)[1]))
    bytearray(256 * _MEGABYTE)
    raise AssertionError("the limit did not hold")


def _hog_memory(megabytes):
    """Takes so much and holds it for a while, for Ray's memory monitor to see; lets go if nobody minds."""
    hoard = []
    for _ in range(megabytes // 64):
        hoard.append(b"x" * (64 * _MEGABYTE))
        time.sleep(0.02)
    time.sleep(5)


def _patch_shard_writer(module):
    members = module._members

    def disturbed(sample, *rest):
        time.sleep(_drag)
        for fault in _faults:
            if fault["where"] == "encode" and fault["seed"] == sample.metadata.candidate.seed:
                _strike(fault)
        return members(sample, *rest)

    module._members = disturbed


def _patch_store(module):
    create = module.Store.create

    def disturbed(self, path, data):
        created = create(self, path, data)
        for fault in _faults:
            if fault["where"] == "stored" and path == f"shards/{fault['tar']}.tar":
                _strike(fault)
        return created

    module.Store.create = disturbed


_PATCHES = {"labelmill.pipeline.shards.writer": _patch_shard_writer, "labelmill.pipeline.store.store": _patch_store}


class _PatchingLoader(importlib.abc.Loader):
    def __init__(self, loader, patch):
        self._loader, self._patch = loader, patch

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        self._patch(module)


class _PatchingFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in _PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _PatchingLoader(spec.loader, _PATCHES[name])
        return spec


_faults = json.loads(os.environ.get("STORM_INSIDE", "[]"))
_drag = float(os.environ.get("STORM_DRAG", "0"))
if _faults or _drag:
    sys.meta_path.insert(0, _PatchingFinder())
# A run that hangs is asked where.
faulthandler.register(signal.SIGUSR1, all_threads=True)
