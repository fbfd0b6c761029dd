"""A control group for a pool service that starts on demand: a scope, where systemd looks after the user's session.

A scope (systemd.scope(5)) holds processes that systemd has not started itself. Nothing has to be set up for it, it ends
with its last process, and what it may take holds for the service and all its VMs together. Where systemd starts the
service, its unit says the same (``commands.units``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

#: also of the unit that ``vm-kernel pool install-service`` writes; where that is installed its limits hold, too
SLICE = "vm-kernel.slice"
#: what the service and its VMs may take, in systemd's words
MEMORY_MAX = "80%"
TASKS_MAX = 8192
#: of the processors when others want them; 100 is what everybody else has
CPU_WEIGHT = 50
#: of one command that asks systemd, in seconds
_TIMEOUT_S = 10.0


def words() -> list[str]:
    """What to put before a command to have it run in such a scope, as the same process; [] if there can be none.

    Called by whoever starts the service. It is tried, at a cost of some 40 ms: a manager may run and have no control
    groups to give. Before systemd 253 a scope has no OOMPolicy; it has this one anyway.
    """
    command = shutil.which("systemd-run")
    if command is None or not _has_manager():
        return []
    whose = [] if os.geteuid() == 0 else ["--user"]
    limits = [f"MemoryMax={MEMORY_MAX}", f"TasksMax={TASKS_MAX}", f"CPUWeight={CPU_WEIGHT}"]
    # a VM that runs into MemoryMax ends alone
    for chosen in ([*limits, "OOMPolicy=continue"], limits):
        properties = [word for limit in chosen for word in ("-p", limit)]
        scope = [command, *whose, "--scope", "--quiet", "--collect", f"--slice={SLICE}", *properties, "--"]
        try:
            done = subprocess.run(
                [*scope, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        if done.returncode == 0:
            return scope
    return []


def booted() -> bool:
    """Whether systemd runs this host, as sd_booted(3) has it."""
    return Path("/run/systemd/system").is_dir()


def _has_manager() -> bool:
    """Whether systemd runs this host, and for a user one of their own, which listens there."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return booted() and (os.geteuid() == 0 or (runtime != "" and Path(runtime, "systemd/private").exists()))
