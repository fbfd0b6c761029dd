"""Does KVM work here? Found out by running a Linux kernel and a program in it, because nothing less is proof.

Where the host is itself a virtual machine, ``/dev/kvm`` can open, create VMs and even run a boot sector, and still be
unable to run a kernel. So the probe boots one, with an init of a hundred bytes that prints a line and restarts.
A guest is given up when its console has been silent for some seconds: a slow KVM (inside emulation) is not broken.
"""

from __future__ import annotations

import os
import selectors
import struct
import subprocess
import tempfile
import time
from pathlib import Path

#: Seconds without a word on the console after which the guest is taken for stuck.
SILENCE_S = 4.0
#: Seconds in all.
LIMIT_S = 60.0

_PROOF = b"vm-kernel: a program ran in the guest"


def probe_kvm(qemu: Path, kernel: Path) -> tuple[bool, str]:
    """Whether a guest ran under KVM, and a sentence about it. Takes at most SILENCE_S where KVM does not work."""
    if not kernel.exists():
        return False, f"KVM was not tried, because {kernel} is missing."
    with tempfile.TemporaryDirectory(prefix="vm-kernel-probe-") as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(_archive(_init_program()))
        command = [
            str(qemu), "-accel", "kvm", "-machine", "pc,usb=off", "-cpu", "host", "-m", "192",
            "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-kernel", str(kernel), "-initrd", str(initrd),
            "-append", "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1",
        ]  # fmt: skip
        started = time.monotonic()
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder
        )
        try:
            console, complaint = _watch(guest, started)
        finally:
            guest.kill()
            guest.communicate()
        seconds = time.monotonic() - started
    return _verdict(console, complaint, seconds)


def _watch(guest: subprocess.Popen[bytes], started: float) -> tuple[bytes, bytes]:
    """Read console and complaints until the proof is there, the guest ends, or it is silent for too long."""
    assert guest.stdout is not None
    assert guest.stderr is not None
    seen = {guest.stdout: bytearray(), guest.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in seen:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < started + LIMIT_S:
            ready = selector.select(SILENCE_S)
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


def _verdict(console: bytes, complaint: bytes, seconds: float) -> tuple[bool, str]:
    if _PROOF in console:
        return True, f"A guest ran under KVM (tried for {seconds:.1f} s)."
    where = "it did not print a word"
    if lines := [line.strip() for line in console.decode(errors="replace").splitlines() if line.strip()]:
        where = f"it got no further than {lines[-1][:100]!r}"
    said = complaint.decode(errors="replace").strip().splitlines()
    if said:
        where = f"QEMU said: {said[-1][:200].rstrip('.')}"
    return False, f"A Linux guest does not run under this host's KVM (tried for {seconds:.1f} s): {where}."


def _init_program() -> bytes:
    """A static x86-64 program: write the proof to the console, then reboot(RESTART)."""
    message = b"\n" + _PROOF + b"\n"
    code = b"".join(
        [
            b"\xb8" + struct.pack("<I", 1),  # mov eax, write
            b"\xbf" + struct.pack("<I", 1),  # mov edi, stdout
            b"\x48\x8d\x35" + struct.pack("<I", 5 + 2 + 5 + 5 + 5 + 5 + 2 + 2),  # lea rsi, [rip + message]
            b"\xba" + struct.pack("<I", len(message)),  # mov edx, length
            b"\x0f\x05",  # syscall
            b"\xb8" + struct.pack("<I", 169),  # mov eax, reboot
            b"\xbf" + struct.pack("<I", 0xFEE1DEAD),  # mov edi, magic
            b"\xbe" + struct.pack("<I", 672274793),  # mov esi, magic
            b"\xba" + struct.pack("<I", 0x01234567),  # mov edx, restart
            b"\x0f\x05",  # syscall
            b"\xeb\xfe",  # stay
        ]
    )
    base, header = 0x400000, 64 + 56
    size = header + len(code) + len(message)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return elf + segment + code + message


def _archive(program: bytes) -> bytes:
    """An initramfs (cpio, "newc") with the program as /init. The kernel itself makes /dev/console."""

    def member(name: bytes, mode: int, data: bytes) -> bytes:
        fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
        return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)

    return member(b"init", 0o100755, program) + member(b"TRAILER!!!", 0, b"")
