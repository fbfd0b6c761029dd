"""The host magics ``%pool_status`` and ``%vm_info``: what they say, as text and as HTML.

In a "VM Sandbox" kernel a cell that starts with one of them is evaluated by the kernel process, on the host. In any
other IPython session of the host they come with ``%load_ext vm_kernel``. Not imported until one is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from vm_kernel.errors import VMKernelError
from vm_kernel.kernel.charts import render
from vm_kernel.kernel.magic_arguments import Parser, Usage
from vm_kernel.kernel.tables import Rows, age, escaped, html_table, mib, ms, text_table
from vm_kernel.pool.client import PoolConnection
from vm_kernel.pool.protocol import VMFacts

#: seconds that the pool service has for its answer
STATUS_TIMEOUT_S = 5.0


def evaluate(name: str, arguments: str, vm: VMFacts | None) -> dict[str, str]:
    """The output of a host magic by MIME type. Never raises: what is wrong is said in the output.

    ``vm`` is the VM of this session, None if it has none (yet). The kernel process calls it in a thread.
    """
    try:
        return _MAGICS[name](arguments, vm)
    except Usage as usage:
        return {"text/plain": str(usage)}
    except (VMKernelError, TimeoutError, OSError) as error:
        text = f"The pool's status is not to be had: {error}"
        return {"text/plain": text, "text/html": f"<p>{escaped(text)}</p>"}


def register(shell: Any) -> None:
    """Add the magics to an IPython session. Called for ``%load_ext vm_kernel``."""
    for name in _MAGICS:
        shell.register_magic_function(_magic_function(name), magic_kind="line", magic_name=name)


def _magic_function(name: str) -> Callable[[str], None]:
    def magic(line: str) -> None:
        from IPython.display import display

        display(evaluate(name, line, None), raw=True)  # type: ignore[no-untyped-call]

    return magic


def _pool_status(arguments: str, vm: VMFacts | None) -> dict[str, str]:
    parser = Parser("pool_status", "The pool of virtual machines, as its service reports it.")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    options = parser.options(arguments)
    connection = PoolConnection.open(start_service=False, timeout_s=STATUS_TIMEOUT_S)
    try:
        status = connection.status(STATUS_TIMEOUT_S, history=not options.json)
    finally:
        connection.close()
    return {"text/plain": json.dumps(status, indent=2)} if options.json else render_status(status, vm)


def _vm_info(arguments: str, vm: VMFacts | None) -> dict[str, str]:
    parser = Parser("vm_info", "The virtual machine of this session.")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    options = parser.options(arguments)
    if options.json:
        return {"text/plain": json.dumps(vm._asdict() if vm else None, indent=2)}
    if vm is None:
        text = "This session has no virtual machine now."
        return {"text/plain": text, "text/html": f"<p>{text}</p>"}
    return render_vm(vm)


_MAGICS: dict[str, Callable[[str, VMFacts | None], dict[str, str]]] = {
    "pool_status": _pool_status,
    "vm_info": _vm_info,
}


# ---- rendering: pure functions of what the service said


def render_vm(vm: VMFacts) -> dict[str, str]:
    """A session's VM as text and as an HTML table."""
    rows = [
        ("VM", vm.name),
        ("profile", vm.profile),
        ("accelerator", _with_reason(vm.accelerator, vm.accelerator_reason)),
        ("transport", vm.transport if vm.cid is None else f"{vm.transport}, CID {vm.cid}"),
        ("memory", f"{vm.memory_mib} MiB"),
        ("virtual CPUs", vm.vcpus),
        ("image", f"{vm.image} ({str(vm.image_digest)[:12]})"),
        ("golden snapshot", str(vm.golden_key)[:12]),
        ("created", vm.created_at),
        ("from clone to warm", ms(vm.warm_ms)),
        ("acquired in", ms(vm.acquire_ms)),
        ("network", _network(vm.egress["allow"] if vm.egress else [])),
        ("output policy", vm.outputs),
        ("QEMU, libvirt", f"{vm.qemu_version}, {vm.libvirt_version}"),
    ]
    return _rendered([("", ("", ""), rows)])


def _with_reason(kind: Any, reason: Any) -> str:
    return f"{kind}: {reason}" if kind and reason else str(kind or "")


def render_status(status: dict[str, Any], vm: VMFacts | None = None) -> dict[str, str]:
    """The pool service's status as text and as HTML, with charts. ``vm`` is marked as this session's own."""
    own = vm.name if vm else None
    charts = render(status.get("history") or {})
    tables = [
        ("Pool", ("", ""), _summary(status)),
        ("Profiles", _PROFILE_COLUMNS, [_profile_row(profile) for profile in status.get("profiles", [])]),
        ("VMs", _VM_COLUMNS, [_vm_row(row, own) for row in status.get("vms", [])]),
        ("Flags", ("VM", "has", "since"), [row for vm in status.get("vms", []) for row in _flag_rows(vm)]),
    ]
    return _rendered(tables, f"<p>{charts}</p>" if charts else "")


_COUNTS = ("warm", "leased", "booting", "waiting")
_PROFILE_COLUMNS = ("profile", "state", *_COUNTS, "min", "max", "memory", "image", "network")
_VM_COLUMNS = ("VM", "profile", "state", "age", "own memory", "CPU", "cells", "held by")


def _summary(status: dict[str, Any]) -> Rows:
    acquire, clone = status.get("acquire_ms") or {}, status.get("clone_ms") or {}
    accelerator, transport = status.get("accelerator") or {}, status.get("transport") or {}
    totals = status.get("totals") or {}
    rows = [
        ("service", f"version {status.get('version')}, pid {status.get('pid')}, up {age(status.get('uptime_s'))}"),
        ("accelerator", _with_reason(accelerator.get("kind"), accelerator.get("reason"))),
        ("transport", transport.get("kind")),
        ("acquire p50 / p95 / p99", _durations(acquire)),
        ("clone p50 / p95 / p99", _durations(clone)),
        ("leases, clones, failures", ", ".join(str(totals.get(n, 0)) for n in ("leases", "clones", "failures"))),
        ("memory available", mib(status.get("host_memory_available_mib"))),
    ]
    details = [
        (f"profile {profile.get('name')}", profile["detail"])
        for profile in status.get("profiles", [])
        if profile.get("detail")
    ]
    return rows + details


def _profile_row(profile: dict[str, Any]) -> list[object]:
    counts = [profile.get(name) for name in (*_COUNTS, "min_warm", "max_vms")]
    head = [profile.get("name"), profile.get("state")]
    return [*head, *counts, mib(profile.get("memory_mib")), profile.get("image"), _network(profile.get("allow"))]


def _network(allow: list[str] | None) -> str:
    """What a profile's VMs may reach, in few words."""
    names = list(map(str, allow or ()))
    return "none" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _vm_row(vm: dict[str, Any], own: str | None) -> list[object]:
    lease = vm.get("lease")
    holder = f"pid {lease.get('pid')} for {age(lease.get('since_s'))}" if lease else ""
    if own is not None and vm.get("name") == own:
        holder = f"this session for {age(lease.get('since_s'))}" if lease else "this session"
    head = [vm.get("name"), vm.get("profile"), vm.get("state")]
    cpu = "" if vm.get("cpu_s") is None else f"{vm['cpu_s']:g} s"
    cells = "" if vm.get("executions") is None else vm["executions"]
    return [*head, age(vm.get("age_s")), mib(vm.get("unique_memory_mib")), cpu, cells, holder]


def _flag_rows(vm: dict[str, Any]) -> Rows:
    return [(vm.get("name"), flag.get("text"), flag.get("since")) for flag in vm.get("flags") or ()]


def _durations(found: dict[str, Any]) -> str:
    return " / ".join(ms(found.get(name)) for name in ("p50", "p95", "p99")) + f" ({found.get('count', 0)})"


def _rendered(tables: Sequence[tuple[str, Sequence[str], Rows]], above: str = "") -> dict[str, str]:
    """``above``: HTML that comes before the tables."""
    shown = [table for table in tables if table[2]]
    text = "\n\n".join(text_table(*table) for table in shown)
    return {"text/plain": text, "text/html": above + "".join(html_table(*table) for table in shown)}
