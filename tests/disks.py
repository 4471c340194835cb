"""Disks of a process's own: read-only ones and ones that are soon full, in a mount namespace that ends with it."""

import ctypes
import os
from pathlib import Path

from tests.processes import end, fork

_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND, _ALL_BELOW, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    given = [os.fsencode(a) if isinstance(a, str | Path) else a for a in arguments]
    if getattr(_libc, name)(*given):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def own_mounts() -> None:
    """From here on what this process mounts is seen by itself and its children alone. OSError where that is forbidden.

    Only of a process without threads: one that was forked a moment ago.
    """
    user, group = os.getuid(), os.getgid()
    try:
        _call("unshare", _NEW_MOUNTS)
    except OSError:
        _call("unshare", _NEW_USER | _NEW_MOUNTS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    _call("mount", "none", "/", None, _ALL_BELOW | _PRIVATE, None)


def read_only(folder: Path) -> None:
    _call("mount", folder, folder, None, _BIND, None)
    _call("mount", folder, folder, None, _BIND | _REMOUNT | _READ_ONLY, None)


def small(folder: Path, size: int) -> None:
    """An empty disk of `size` bytes at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", "tmpfs", folder, "tmpfs", 0, f"size={size}")


def grow(folder: Path, size: int) -> None:
    _call("mount", "tmpfs", folder, "tmpfs", _REMOUNT, f"size={size}")


def allowed(folder: Path) -> bool:
    """Whether a process may have disks of its own here."""
    process = fork(lambda: (own_mounts(), small(folder / "disk", 2**16)), folder / "said", folder / "said")
    return end(process) == 0
