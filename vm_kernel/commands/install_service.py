"""``vm-kernel pool install-service``: have systemd run the pool service, within limits. The units are in ``units``."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from vm_kernel.commands import units
from vm_kernel.errors import ConfigError, HostError
from vm_kernel.pool import privileges, scope

TIMEOUT_S = 120.0


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action to ``vm-kernel pool``."""
    parser = actions.add_parser(
        "install-service",
        help="have systemd run the service, within limits",
        description="Without this, the first kernel starts the service and it ends when nobody uses it. With it, "
        "systemd starts the service when the user logs in (--user) or the host boots (--system), keeps it, and "
        "limits what it and all its VMs take together.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user (the default unless you are root)")
    where.add_argument("--system", action="store_true", help="for root's Jupyter, as the user of c.PoolConfig.user")
    usual = units.Limits()
    parser.add_argument("--memory-max", default=usual.memory_max, metavar="SIZE", help="such as 16G (default: 80%%)")
    parser.add_argument("--cpu-quota", default=usual.cpu_quota, metavar="SHARE", help="such as 400%% (default: none)")
    parser.add_argument(
        "--tasks-max",
        type=int,
        default=usual.tasks_max,
        metavar="N",
        help="processes and threads (default: %(default)s)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--print", action="store_true", help="print the units and do nothing")
    what.add_argument("--no-start", action="store_true", help="write the units, and tell systemd nothing")
    what.add_argument("--uninstall", action="store_true", help="stop the service and remove the units")
    parser.add_argument("--force", action="store_true", help="replace units that are there and differ")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError or HostError, with nothing written, if it cannot be done."""
    system = args.system or (os.geteuid() == 0 and not args.user)
    folder = units.folder(system)
    if args.uninstall:
        return _uninstall(system, folder)
    from vm_kernel.config import load_config

    user = load_config().pool.user
    texts = units.texts(system, units.Limits(args.memory_max, args.cpu_quota, args.tasks_max), user)
    if args.print:
        for name, text in texts.items():
            print(f"# {folder / name}\n{text}")
        return 0
    if not args.no_start:
        _check_systemd()
    if system:
        _check_user(user)
    _check_present(folder, texts, args.force)
    _write(folder, texts)
    print(f"Written: {', '.join(str(folder / name) for name in texts)}")
    if args.no_start:
        return 0
    _systemctl(system, "daemon-reload")
    _systemctl(system, "enable", units.SERVICE)
    _systemctl(system, "restart", units.SERVICE)
    print(f"The pool service runs now and from now on; {_command(system)} status {units.SERVICE} shows it.")
    return 0


def _uninstall(system: bool, folder: Path) -> int:
    names = [name for name in (units.SERVICE, scope.SLICE) if (folder / name).exists()]
    if not names:
        print(f"There are no units of ours in {folder}.")
        return 0
    running = scope.booted() and shutil.which("systemctl") is not None
    if running and units.SERVICE in names:
        _systemctl(system, "disable", "--now", units.SERVICE)
    try:
        for name in names:
            (folder / name).unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None
    if running:
        _systemctl(system, "daemon-reload")
    print(f"Removed: {', '.join(str(folder / name) for name in names)}")
    return 0


def _check_systemd() -> None:
    if not scope.booted() or shutil.which("systemctl") is None:
        raise HostError(
            "This machine is not run by systemd.",
            "The first kernel starts the pool service by itself, and `vm-kernel pool start` does. --print shows the "
            "units, --no-start writes them all the same, for an image that systemd will run.",
        )


def _check_user(user: str) -> None:
    """Only root installs it, and its user can run our code: tried, not guessed from permissions. Makes its folders."""
    if os.geteuid() != 0:
        raise ConfigError("Only root can install the system's service.", "Use sudo, or --user for one of your own.")
    entry = privileges.give_folders(user)
    command = [sys.executable, "-P", "-c", "import vm_kernel.pool.main"]
    done = subprocess.run(
        command, user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], cwd="/", capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it ends at once"])[-1]
        raise ConfigError(
            f"User {user!r} cannot run {sys.executable} with vm-kernel: {said}",
            "Install vm-kernel where everybody can read it, such as /opt/vm-kernel.",
        )


def _check_present(folder: Path, texts: dict[str, str], force: bool) -> None:
    for name, text in texts.items():
        path = folder / name
        if path.exists() and path.read_text() != text and not force:
            raise ConfigError(f"{path} is there and differs.", "Look at it; --force replaces it.")


def _write(folder: Path, texts: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            new = folder / f".{name}.new"
            new.write_text(text)
            new.chmod(0o644)
            new.replace(folder / name)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> HostError:
    return HostError(f"The units in {folder} cannot be changed: {error.strerror}.", "Use sudo, or --user.")


def _systemctl(system: bool, *words: str) -> None:
    command = [*_command(system).split(), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise HostError(
            f"`{' '.join(command)}` takes longer than {TIMEOUT_S:.0f} s.", "Look into the journal."
        ) from None
    if done.returncode != 0:
        journal = "journalctl -u" if system else "journalctl --user -u"
        raise HostError(
            f"`{' '.join(command)}` failed: {done.stderr.strip() or f'status {done.returncode}'}",
            f"`{journal} {units.SERVICE}` says more. If a service that a kernel has started is in the way, "
            "`vm-kernel pool stop` ends it.",
        )


def _command(system: bool) -> str:
    return "systemctl" if system else "systemctl --user"
