"""Start-up of the pool service: configuration, privileges, lock, log. What it then does is in ``service``."""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import json
import logging
import os
import resource
import sys
from logging.handlers import RotatingFileHandler

import structlog

from vm_kernel import paths
from vm_kernel.config import LoadedConfig, load_config
from vm_kernel.errors import PoolUnavailable, VMKernelError
from vm_kernel.pool import privileges, systemd
from vm_kernel.pool.protocol import error_event
from vm_kernel.pool.service import PoolService

LOG_BYTES = 4 * 1024 * 1024
LOG_FILES = 3
MAX_DESCRIPTORS = 16384


class Starter:
    """Tells whoever started us, over an inherited pipe, that we listen or why we do not."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def say(self, event: dict[str, object]) -> None:
        """Say it once; later calls do nothing."""
        if self._fd is None:
            return
        try:
            os.write(self._fd, json.dumps(event).encode())
        except OSError:
            structlog.get_logger().warning("starter_gone")
        os.close(self._fd)
        self._fd = None


def main() -> None:
    """Entry point. Exit status 0 after a graceful stop or if a service runs already, 1 on an error."""
    parser = argparse.ArgumentParser(prog="python -m vm_kernel.pool", description="The pool service of VM Sandbox.")
    parser.add_argument("--ready-fd", type=int, help="a descriptor on which to say that the service listens")
    parser.add_argument("--stay", action="store_true", help="do not end when idle, nor because another service runs")
    options = parser.parse_args()
    starter = Starter(options.ready_fd)
    try:
        loaded = load_config()
        caller = privileges.drop(loaded.pool.user)
        privileges.lock()
        _make_folders()
        lock = _lock()
        if lock is None:
            if options.stay:
                raise PoolUnavailable(
                    f"Another pool service of {paths.home()} runs.", "`vm-kernel pool stop` ends it; then try again."
                )
            starter.say({"event": "running"})
            return
        _log_to_file()
        _allow_descriptors()
        _serve(loaded, caller, starter, options.stay)
    except VMKernelError as error:
        starter.say(error_event(error))
        print(f"vm-kernel pool: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f"Make room on the disk of {paths.home()}, or set VM_KERNEL_HOME to another place." if full else ""
        unexpected = VMKernelError(f"The pool service failed to start: {type(error).__name__}: {error}", hint)
        starter.say(error_event(unexpected))
        raise


def _serve(loaded: LoadedConfig, caller: int, starter: Starter, stay: bool) -> None:
    log = structlog.get_logger()
    log.info("service_starts", pid=os.getpid(), uid=os.geteuid(), config=[str(path) for path in loaded.files])
    service = PoolService(loaded, allowed_uids={0, os.geteuid(), caller}, stay=stay)

    def listening() -> None:
        starter.say({"event": "listening"})
        systemd.ready()

    try:
        asyncio.run(service.run(on_listening=listening))
    except Exception:
        log.exception("service_failed")
        raise
    log.info("service_ends", pid=os.getpid())


def _make_folders() -> None:
    for folder in (paths.home(), paths.run_dir(), paths.golden_dir(), paths.log_file().parent):
        paths.make_private_dir(folder)


def _lock() -> int | None:
    """A lock that lasts as long as this process; None if another service of this home holds it."""
    fd = os.open(paths.run_dir() / "pool.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _allow_descriptors() -> None:
    """As many as we may have: a thousand connections and a hundred VMs are more than the usual soft limit of 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _log_to_file() -> None:
    """JSON lines, rotated."""
    handler = RotatingFileHandler(paths.log_file(), maxBytes=LOG_BYTES, backupCount=LOG_FILES)
    logging.basicConfig(handlers=[handler], format="%(message)s", level=logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
