"""The smallest guest that proves something: an initramfs with one program of a hundred bytes, which prints a text.

Used by ``kvm_probe``, and by tests that need a template in seconds.
"""

from __future__ import annotations

import struct

_WRITE, _PAUSE, _REBOOT = 1, 34, 169
_REBOOT_MAGIC, _REBOOT_MAGIC2, _RESTART = 0xFEE1DEAD, 672274793, 0x01234567
_LOAD_ADDRESS = 0x400000
_HEADERS = 64 + 56


def initramfs(text: bytes, *, then_restart: bool) -> bytes:
    """An initramfs (cpio, "newc") whose /init prints ``text`` on the console and restarts the guest, or waits for ever.

    The kernel itself makes /dev/console, and opens it for /init.
    """
    return _member(b"init", 0o100755, _program(text, then_restart)) + _member(b"TRAILER!!!", 0, b"")


def _program(text: bytes, then_restart: bool) -> bytes:
    """A static x86-64 executable: one segment, code followed by the text."""
    end = _restart() if then_restart else _wait()
    write = _load(b"\xb8", _WRITE) + _load(b"\xbf", 1)  # mov eax, write; mov edi, stdout
    size = _load(b"\xba", len(text)) + b"\x0f\x05"  # mov edx, length; syscall
    code = write + b"\x48\x8d\x35" + struct.pack("<i", len(size) + len(end)) + size + end  # lea rsi, [rip + text]
    length = _HEADERS + len(code) + len(text)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    entry = _LOAD_ADDRESS + _HEADERS
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, length, length, 0x1000)
    return header + segment + code + text


def _restart() -> bytes:
    # mov eax, reboot; mov edi, magic; mov esi, magic2; mov edx, restart; syscall; jmp here
    registers = (b"\xb8", _REBOOT), (b"\xbf", _REBOOT_MAGIC), (b"\xbe", _REBOOT_MAGIC2), (b"\xba", _RESTART)
    return b"".join(_load(opcode, value) for opcode, value in registers) + b"\x0f\x05\xeb\xfe"


def _wait() -> bytes:
    return _load(b"\xb8", _PAUSE) + b"\x0f\x05\xeb\xf7"  # mov eax, pause; syscall; jmp to the mov


def _load(opcode: bytes, value: int) -> bytes:
    return opcode + struct.pack("<I", value)


def _member(name: bytes, mode: int, data: bytes) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
