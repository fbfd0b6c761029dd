"""Running the build's steps as root of namespaces of their own. What the steps do is in debian.py and build.py.

Everything that makes files with the guest's owners runs in new mount and process namespaces, so that mounts and
processes vanish with them however they end. An ordinary user also gets a user namespace in which it is root and has
its range of /etc/subuid, which needs ``newuidmap``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from vm_kernel.errors import HostError, ImageError

_TAIL_LINES = 30
#: Debian packages of the programs that a build calls
_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "dpkg-deb": "dpkg",
    "tar": "tar",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}


class CommandFailed(Exception):
    """A step's program ended with an error. ``output`` is the last part of what it printed."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{command[0]} ended with status {status}")
        self.output = output


def check_host() -> None:
    """Is all there that a build needs? Raises HostError (a program is missing) or ImageError (no namespaces).

    The builder calls it first, so that nobody waits for a download that leads nowhere.
    """
    programs = _PROGRAMS if os.geteuid() == 0 else _PROGRAMS | {"newuidmap": "uidmap"}
    if missing := {package for program, package in programs.items() if not shutil.which(program, path=_path())}:
        packages = " ".join(sorted(missing))
        raise HostError(f"Building an image needs programs of: {packages}.", f"sudo apt-get install {packages}")
    try:
        run(["true"])
    except CommandFailed as error:
        why = error.output.strip() or str(error)
        raise ImageError(f"This machine gives no namespaces to build an image in: {why}", _namespace_hint()) from None


def run(
    command: Sequence[str],
    on_line: Callable[[str], None] = lambda line: None,
    stdin: str = "",
    folder: Path | None = None,
) -> None:
    """Run a program as root of new namespaces, until its end. ``on_line`` gets each line that it prints.

    Raises CommandFailed. If this process is interrupted or killed, the program and all its children are killed too.
    """
    run_plainly([*_enter(), *command], on_line, stdin, folder)


def run_plainly(
    command: Sequence[str],
    on_line: Callable[[str], None] = lambda line: None,
    stdin: str = "",
    folder: Path | None = None,
) -> None:
    """The same without namespaces, as the calling user."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    environment = os.environ | {"PATH": _path(), "LC_ALL": "C.UTF-8", "TMPDIR": str(folder or "/tmp")}
    # the child dies with us even if we are killed with SIGKILL
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        cwd=folder,
        env=environment,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin:
            process.stdin.write(stdin)
        for line in process.stdout:
            tail.append(line)
            on_line(line.rstrip())
        status = process.wait()
    except BaseException:
        _kill(process)
        raise
    if status != 0:
        raise CommandFailed(command, status, "".join(tail))


def remove_tree(folder: Path) -> None:
    """Remove a folder whose files may belong to users of a namespace. Raises CommandFailed if it cannot."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError:
        run(["rm", "-rf", "--one-file-system", str(folder)])


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the whole session; processes in a process namespace die with its first."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        process.wait()


def _enter() -> list[str]:
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return command if os.geteuid() == 0 else [*command, "--map-root-user", "--map-auto"]


def _path() -> str:
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"


def _namespace_hint() -> str:
    if os.geteuid() == 0:
        return "In a container, start it with the right to mount (--privileged), or build on the host."
    return (
        "An ordinary user needs a range in /etc/subuid and /etc/subgid (sudo usermod --add-subuids 100000-165535 "
        "--add-subgids 100000-165535 $USER) and the right to make user namespaces (sudo sysctl -w "
        "kernel.unprivileged_userns_clone=1; on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0). "
        "Or build as root."
    )
