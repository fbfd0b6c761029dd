"""Does KVM work here? Found out by running a Linux kernel and a program in it, because nothing less is proof.

Where the host is itself a virtual machine, ``/dev/kvm`` can open, create VMs and even run a boot sector, and still be
unable to run a kernel. So the probe boots one, with an init of a hundred bytes that prints a line and restarts.
A guest is given up when its console has been silent for some seconds; on a host that is slow itself (inside emulation)
for more of them, because a slow KVM is not broken.
"""

from __future__ import annotations

import os
import resource
import selectors
import subprocess
import tempfile
import time
from pathlib import Path

from vm_kernel.vm import tiny_guest

#: Seconds without a word on the console after which the guest is taken for stuck, and seconds in all.
SILENCE_S = 4.0
LIMIT_S = 60.0
#: CPU seconds that QEMU needs to print its version on a host that is not slow. Seen: 0.03 to 0.05. Inside emulation it
#: was 0.6; there, a guest needed 2 to 6 s to its first word, 17 to 30 s in all, and was silent for 8 s in between.
_QEMU_STARTS_S = 0.1

_PROOF = b"vm-kernel: a program ran in the guest"


def probe_kvm(qemu: Path, kernel: Path) -> tuple[bool, str]:
    """Whether a guest ran under KVM, and a sentence about it. Takes some SILENCE_S where KVM does not work."""
    return probe(qemu, kernel, "kvm", "host")


def probe(qemu: Path, kernel: Path, accelerator: str, cpu: str) -> tuple[bool, str]:
    """The same for any of QEMU's accelerators and processor models."""
    if not kernel.exists():
        return False, f"{accelerator.upper()} was not tried, because {kernel} is missing."
    with tempfile.TemporaryDirectory(prefix="vm-kernel-probe-") as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(tiny_guest.initramfs(b"\n" + _PROOF + b"\n", then_restart=True))
        command = [
            # a probe that is killed leaves no guest behind, which could use up a core for ever
            "setpriv", "--pdeathsig", "KILL", "--",
            str(qemu), "-accel", accelerator, "-machine", "pc,usb=off", "-cpu", cpu, "-m", "192",
            "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-kernel", str(kernel), "-initrd", str(initrd),
            "-append", "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1",
        ]  # fmt: skip
        slowness = _slowness(qemu)
        started = time.monotonic()
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder
        )
        try:
            console, complaint = _watch(guest, started + LIMIT_S * slowness, SILENCE_S * slowness)
        finally:
            guest.kill()
            guest.communicate()
        seconds = time.monotonic() - started
    return _verdict(accelerator.upper(), console, complaint, seconds)


def _slowness(qemu: Path) -> float:
    """How much slower than usual this host is, at least 1. In CPU time, so that other load does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([qemu, "--version"], stdout=subprocess.DEVNULL, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return max(1.0, seconds / _QEMU_STARTS_S)


def _watch(guest: subprocess.Popen[bytes], deadline: float, silence_s: float) -> tuple[bytes, bytes]:
    """Read console and complaints until the proof is there, the guest ends, or it is silent for too long."""
    assert guest.stdout is not None
    assert guest.stderr is not None
    seen = {guest.stdout: bytearray(), guest.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in seen:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            ready = selector.select(silence_s)
            if not ready:
                break
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                seen[key.fileobj] += chunk  # type: ignore[index]
            if _PROOF in seen[guest.stdout]:
                break
    return bytes(seen[guest.stdout]), bytes(seen[guest.stderr])


def _verdict(accelerator: str, console: bytes, complaint: bytes, seconds: float) -> tuple[bool, str]:
    if _PROOF in console:
        return True, f"A guest ran under {accelerator} (tried for {seconds:.1f} s)."
    where = "it did not print a word"
    if lines := [line.strip() for line in console.decode(errors="replace").splitlines() if line.strip()]:
        where = f"it got no further than {lines[-1][:100]!r}"
    said = complaint.decode(errors="replace").strip().splitlines()
    if said:
        where = f"QEMU said: {said[-1][:200].rstrip('.')}"
    return False, f"A Linux guest does not run under this host's {accelerator} (tried for {seconds:.1f} s): {where}."
