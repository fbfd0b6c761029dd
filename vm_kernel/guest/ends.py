"""Why Python in the guest has ended, in words for the user: from the agent's KERNEL_DIED message.

The message comes from the guest and is not to be trusted: only numbers and flags are taken from it, the words are ours.
"""

from __future__ import annotations

import signal
from typing import Any

from vm_kernel.errors import VMDied

_LOST = "The state of the session is lost; a restart brings a fresh VM."
_CRASHES = frozenset({"SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT"})


def python_ended(fields: dict[str, Any], memory_mib: int | None) -> VMDied:
    """The error for a session whose ipykernel has ended. ``memory_mib``: of the VM, if it is known."""
    name = _signal_name(fields.get("signal"))
    if fields.get("out_of_memory") is True:
        has = f" The VM has {memory_mib} MiB of memory." if memory_mib else ""
        return VMDied(
            f"Python in the virtual machine was ended because it ran out of memory.{has}",
            f"{_LOST} Use less memory at a time, or a profile with more (memory_mib in c.PoolConfig.profiles).",
        )
    if name in _CRASHES:
        return VMDied(f"Python in the virtual machine has crashed ({name}): native code did what it may not.", _LOST)
    if name:
        return VMDied(f"Python in the virtual machine was killed by {name}.", _LOST)
    code = fields.get("exit_code")
    if isinstance(code, int) and 0 <= code < 256:
        return VMDied(f"Python in the virtual machine has ended itself, with status {code}.", _LOST)
    return VMDied("Python in the virtual machine has ended, and no reason is known.", _LOST)


def _signal_name(number: object) -> str:
    try:
        return signal.Signals(number).name if isinstance(number, int) else ""
    except ValueError:
        return f"signal {number}" if isinstance(number, int) and 0 < number < 128 else ""
