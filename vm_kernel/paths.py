"""Where things are kept on the host. Standard library only: the kernel process imports this at start.

``VM_KERNEL_HOME`` moves everything. Without it, an ordinary user's state is in ``~/.local/share/vm-kernel``
and root's in ``/var/lib/vm-kernel`` (root's pool service runs as another user, who cannot read ``/root``).
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from vm_kernel.errors import ConfigError

#: libvirt puts sockets up to 50 bytes below the runtime folder and the kernel limits their names to 107 bytes
MAX_RUN_DIR_BYTES = 48


def home() -> Path:
    """The folder of everything that we keep: images, golden snapshots, logs."""
    if configured := os.environ.get("VM_KERNEL_HOME"):
        return Path(configured).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/vm-kernel")
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "vm-kernel"


def images_dir() -> Path:
    """Guest images. ``VM_KERNEL_IMAGES`` overrides, so that several homes can share one store."""
    return Path(os.environ.get("VM_KERNEL_IMAGES") or home() / "images").absolute()


def golden_dir() -> Path:
    """Golden snapshots, one folder a golden key. ``VM_KERNEL_GOLDEN`` overrides, as for images."""
    return Path(os.environ.get("VM_KERNEL_GOLDEN") or home() / "golden").absolute()


def checkpoints_dir() -> Path:
    """Checkpoints: those of sessions that are running, and those that were kept."""
    return home() / "checkpoints"


def log_file() -> Path:
    """The pool service's log (JSON lines)."""
    return home() / "log" / "pool.log"


def audit_log() -> Path:
    """The pool service's audit log (JSON lines); older ones are beside it."""
    return home() / "log" / "audit.log"


def run_dir() -> Path:
    """Sockets, locks and libvirt's root. A function of home(), short enough for socket names; may not exist yet."""
    candidate = home() / "run"
    if len(os.fsencode(candidate)) <= MAX_RUN_DIR_BYTES:
        return candidate
    digest = hashlib.sha256(os.fsencode(home())).hexdigest()[:10]
    return Path("/tmp") / f"vm-kernel-{digest}"


def pool_socket() -> Path:
    """The pool service's unix socket."""
    return run_dir() / "pool.sock"


def profile_facts(profile: str) -> Path:
    """A small JSON file that the pool service writes for each profile, for a kernel process that has no VM yet."""
    return run_dir() / f"profile-{profile}.json"


def make_private_dir(path: Path) -> Path:
    """Create ``path`` (0700) if it is not there. Raises ConfigError if it belongs to somebody else.

    The pool service calls it for every folder of its own; names below /tmp can be taken by anybody.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{path} belongs to another user (uid {facts.st_uid}); our state is not safe there.",
            "Set VM_KERNEL_HOME to a folder of your own.",
        )
    if facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) & 0o077:
        path.chmod(0o700)
    return path
