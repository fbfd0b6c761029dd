"""What a process that the agent forks for some work does first. What the work is: files_worker.py, proxy_worker.py."""

from __future__ import annotations

import contextlib
import os
import resource
import signal

from guest_agent.init import USER_HOME, USER_ID


def forget_the_agent(*keep: int) -> None:
    """Nothing of the agent's is ours: not its descriptors, not its signals."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  its own descriptor is in it, and closed by now
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))


def become_user() -> None:
    """Give up root for good: a process like the user's own."""
    with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("0")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setgroups([])
    os.setresgid(USER_ID, USER_ID, USER_ID)
    os.setresuid(USER_ID, USER_ID, USER_ID)
    os.chdir(USER_HOME)
