"""Entry point of the kernel process: ``python -m vm_kernel -f CONNECTION_FILE [--profile NAME]``.

Start-up speed is a feature. Ports are bound before anything is imported that is not needed for it; argparse,
pathlib, dataclasses, logging and asyncio are not imported at all until something needs them.
"""

from __future__ import annotations

import os
import sys

USAGE = """\
usage: python -m vm_kernel -f CONNECTION_FILE [--profile NAME]

Jupyter starts this program as the kernel "VM Sandbox"; it is of no use by hand.
See `vm-kernel --help` for everything else.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one kernel. Does not return when it has run: the process ends. 2 if the command line is wrong."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    if options is None:
        sys.stderr.write(USAGE)
        return 2
    path, profile = options

    from vm_kernel.errors import VMKernelError
    from vm_kernel.kernel import connection
    from vm_kernel.kernel.sockets import bind
    from vm_kernel.kernel.wire import Signer

    try:
        found = connection.read(path)
        signer = Signer(found.key, found.signature_scheme)
        sockets = bind(found)
    except (VMKernelError, ValueError) as error:
        sys.stderr.write(f"vm-kernel: {error}\n")
        return 1

    # Clients can connect from here on; the rest is imported while they do.
    from vm_kernel.kernel.relay import Relay

    relay = Relay(sockets, signer, profile, _kernel_id(path))
    try:
        status = relay.run(_parent_fd())
    except Exception:
        import traceback

        traceback.print_exc()
        status = 1
    relay.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # No waiting for threads (one may still ask the pool service for a VM) and no tidying up of modules.
    os._exit(status)


def _parse(arguments: list[str]) -> tuple[str, str] | None:
    """Connection file and profile; None if the arguments make no sense."""
    given = {"-f": "", "--profile": "default"}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in given or not (value := value if equals else next(rest, "")):
            return None
        given[name] = value
    return (given["-f"], given["--profile"]) if given["-f"] else None


def _kernel_id(path: str) -> str:
    """Jupyter's name for this kernel, as far as the connection file tells it."""
    return os.path.basename(path).removeprefix("kernel-").removesuffix(".json")  # noqa: PTH119


def _parent_fd() -> int:
    """A descriptor that becomes readable when the Jupyter process that started us has gone; -1 if nobody asks.

    Jupyter tells its process id in JPY_PARENT_PID. Process 1 never goes.
    """
    announced, parent = os.environ.get("JPY_PARENT_PID"), os.getppid()
    if not announced or announced == "1":
        return -1
    if parent == 1:
        os._exit(1)  # it has gone already
    try:
        return os.pidfd_open(parent)
    except OSError:
        return -1
