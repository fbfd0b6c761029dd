"""``vm-kernel doctor``: check what a VM needs on this host and say what to do about what is missing.

Each check is a function that returns a Check; a VMKernelError that it raises is a failed check with that error's
hint. What runs QEMU runs in unprivileged.py's child, because QEMU never runs as root.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vm_kernel import paths
from vm_kernel.commands.unprivileged import run_unprivileged
from vm_kernel.config import LoadedConfig, PoolConfig, load_config
from vm_kernel.errors import ImageError, PoolError, UnknownProfile, VMKernelError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, whether it will do, what was seen, and what to do about it."""

    name: str
    level: Level
    summary: str
    hint: str = ""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this host",
        description="Check what a VM needs: QEMU, libvirt, KVM (by running a guest), vsock, memory, image, golden "
        "snapshot, kernelspec. Exit status 1 if a check fails.",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--security", action="store_true", help="how thick this host's walls around a VM are, instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run every check and print the findings. The exit status is 1 if one failed."""
    checks = examine_security() if args.security else examine()
    failed = any(check.level == "fail" for check in checks)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        show(checks)
    return int(failed)


def examine() -> list[Check]:
    """All findings. Takes some seconds, because a guest is run."""
    loaded, first = _config()
    pool = loaded.pool
    steps: list[tuple[str, Callable[[], Check]]] = [
        ("QEMU", partial(qemu, pool)),
        ("libvirt", partial(libvirt, pool)),
        ("image", partial(image, pool)),
        ("accelerator", partial(accelerator, pool)),
        ("transport", partial(transport, pool)),
        ("memory", partial(memory, pool)),
        ("network of VMs", partial(network, pool)),
        ("pool service", pool_service),
        ("golden snapshot", golden),
        ("kernelspec", partial(kernelspec, pool)),
    ]
    return [first, *(_attempt(name, step) for name, step in steps)]


def examine_security() -> list[Check]:
    """The findings about the host's walls. Takes some seconds, because a guest is run."""
    from vm_kernel.commands import security_checklist, security_facts

    loaded, first = _config()
    try:
        return security_checklist.judge(security_facts.collect(loaded.pool))
    except VMKernelError as error:
        return [first, Check("host", "fail", error.message, error.hint)]


def show(checks: list[Check]) -> None:
    """Print the findings for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table.grid(padding=(0, 2))
    for check in checks:
        said = Text(check.summary)
        if check.hint:
            said.append(f"\n-> {check.hint}", style="dim")
        table.add_row(Text(check.level, style=colours[check.level]), Text(check.name), said)
    Console().print(table)


def qemu(pool: PoolConfig) -> Check:
    """Is QEMU's emulator for x86-64 there, new enough, and able to do what VMs need?"""
    from vm_kernel.vm import capabilities, host

    found = f"{host.qemu_binary()}, version {host.qemu_version()}"
    return Check("QEMU", "ok", f"{found}; {run_unprivileged(lambda _: capabilities.of_qemu().sentence, pool.user)}")


def libvirt(pool: PoolConfig) -> Check:
    """Does libvirt's QEMU driver load? Opens it, as the pool service does."""
    from vm_kernel.vm import capabilities
    from vm_kernel.vm.hypervisor import Hypervisor

    def open_and_close(folder: Path) -> None:
        Hypervisor.open(folder / "lv", pool.libvirt_uri).close()

    version = capabilities.check_libvirt()
    run_unprivileged(open_and_close, pool.user)
    return Check("libvirt", "ok", f"version {version}, {pool.libvirt_uri or 'qemu:///embed'} opens")


def image(pool: PoolConfig) -> Check:
    """Is the guest image there and whole?"""
    from vm_kernel.image.store import open_image

    found = open_image(pool.image)
    mib = sum(path.stat().st_size for path in (found.kernel, found.initrd, found.root)) >> 20
    return Check("image", "ok", f"{found.name} {found.digest[:12]}, {mib} MiB in {found.folder}")


def accelerator(pool: PoolConfig) -> Check:
    """Which accelerator will VMs use? Runs a guest under KVM unless TCG is demanded."""
    from vm_kernel.image.store import open_image
    from vm_kernel.vm import host

    try:
        kernel = open_image(pool.image).kernel
    except ImageError as error:
        return Check("accelerator", "warn", "not tried: there is no image to run", error.hint)

    def probe(folder: Path) -> tuple[str, str, str]:
        found = host.resolve_accelerator(pool.accelerator, folder / "probe.json", kernel)
        return found.kind, found.reason, found.hint

    kind, reason, hint = run_unprivileged(probe, pool.user)
    if kind == "kvm":
        return Check("accelerator", "ok", f"KVM: {reason}")
    return Check("accelerator", "warn", f"TCG: {reason}", hint)


def transport(pool: PoolConfig) -> Check:
    """How will the host talk to the guest? Looks as the service's user, who must be allowed to."""
    from vm_kernel.vm import host

    def look(_: Path) -> tuple[str, str, str]:
        found = host.resolve_transport(pool.transport)
        return found.kind, found.reason, found.hint

    kind, reason, hint = run_unprivileged(look, pool.user)
    # a virtio port does all that vsock does, if not as quickly: nothing to warn of
    return Check("transport", "ok", f"{kind}: {reason}", f"For vsock: {hint}" if hint else "")


def memory(pool: PoolConfig) -> Check:
    """Is there memory for the golden image and the VMs?"""
    from vm_kernel.vm.memory import available_mib

    available = available_mib()
    least = sum(2 * profile.memory_mib for profile in pool.all_profiles())
    most = sum((profile.max_vms + 1) * profile.memory_mib for profile in pool.all_profiles())
    summary = f"{available} MiB available; all VMs at their limit would take {most} MiB"
    if available < least:
        hint = f"Free memory: at least {least} MiB are needed. Or lower c.PoolConfig.vm_memory_mib."
        return Check("memory", "fail", summary, hint)
    if available < most:
        return Check("memory", "warn", summary, "Lower c.PoolConfig.max_vms or vm_memory_mib if cells use much memory.")
    return Check("memory", "ok", summary)


def network(pool: PoolConfig) -> Check:
    """May VMs reach the network, and what of it?"""
    open_ones = [profile for profile in pool.all_profiles() if profile.allow]
    if not open_ones:
        return Check("network of VMs", "ok", "none: no profile allows anything")
    said = "; ".join(f"{profile.name}: {', '.join(profile.allow)}" for profile in open_ones)
    private = sorted({network for profile in open_ones for network in profile.allow_private})
    if private:
        hint = "Services there that trust this host can be reached under these names: see that each is meant."
        return Check("network of VMs", "warn", f"{said}; also at private addresses in {', '.join(private)}", hint)
    return Check("network of VMs", "ok", said)


def pool_service() -> Check:
    """Is the service running, and are its profiles well?"""
    from vm_kernel.pool.client import PoolConnection

    try:
        connection = PoolConnection.open(start_service=False)
    except PoolError:
        return Check("pool service", "ok", "not running; the first kernel starts it")
    try:
        status = connection.status()
    finally:
        connection.close()
    broken = [
        f"{profile['name']}: {profile['detail']}" for profile in status["profiles"] if profile["state"] == "broken"
    ]
    if broken:
        return Check("pool service", "fail", f"pid {status['pid']}; {'; '.join(broken)}", f"See {paths.log_file()}.")
    warm = sum(profile["warm"] for profile in status["profiles"])
    return Check("pool service", "ok", f"pid {status['pid']}, {warm} warm VMs")


def golden() -> Check:
    """Is there a snapshot to fork from? Whether it fits, the service decides; it rebuilds one that does not."""
    folder = paths.golden_dir()
    try:
        found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        found = []
    if not found:
        hint = "Nothing to do: the first start builds it (some tens of seconds). `vm-kernel pool start` does it now."
        return Check("golden snapshot", "warn", "none yet", hint)
    return Check("golden snapshot", "ok", f"{', '.join(name[:12] for name in found)} in {folder}")


def kernelspec(config: PoolConfig) -> Check:
    """Does Jupyter find the kernel, can its command be run, and is its profile configured?"""
    from jupyter_client.kernelspec import KernelSpecManager

    specs = KernelSpecManager().get_all_specs()
    ours = {name: found for name, found in specs.items() if "vm_kernel" in found["spec"]["argv"]}
    if not ours:
        return Check("kernelspec", "fail", "Jupyter does not know the kernel", "Run `vm-kernel install`.")
    for name, found in ours.items():
        interpreter = found["spec"]["argv"][0]
        if Path(interpreter).is_absolute() and not os.access(interpreter, os.X_OK):
            return Check("kernelspec", "fail", f"{name} names {interpreter}, which is gone", "Run `vm-kernel install`.")
    for name, found in ours.items():
        _, _, profile = " ".join(found["spec"]["argv"]).partition(" --profile ")
        try:
            config.profile(profile or "default")
        except UnknownProfile as error:
            hint = f"{error.hint} Or remove the kernel: `jupyter kernelspec remove {name}`."
            return Check("kernelspec", "warn", f"{name} cannot start: {error.message}", hint)
    return Check("kernelspec", "ok", ", ".join(f"{name} in {found['resource_dir']}" for name, found in ours.items()))


def _config() -> tuple[LoadedConfig, Check]:
    try:
        loaded = load_config()
    except VMKernelError as error:
        return LoadedConfig(PoolConfig()), Check("configuration", "fail", error.message, error.hint)
    files = ", ".join(map(str, loaded.files)) or "no file, all defaults"
    return loaded, Check("configuration", "ok", files)


def _attempt(name: str, step: Callable[[], Check]) -> Check:
    try:
        return step()
    except VMKernelError as error:
        return Check(name, "fail", error.message, error.hint)
    except Exception as error:  # a doctor that falls over helps nobody: what it did not expect is a finding too
        return Check(name, "fail", f"{type(error).__name__}: {error}", "Please report this; it is unexpected.")
