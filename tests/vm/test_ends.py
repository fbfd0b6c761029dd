"""Why a VM has ended, in words. With real ends: tests/kernel/test_death.py, tests/pool/test_hostile_guest.py."""

from __future__ import annotations

import pytest

from vm_kernel.vm.ends import in_words


@pytest.mark.parametrize(
    ("reason", "status", "said"),
    [
        ("guest-reset", 0, "the Linux kernel in it has panicked, or restarted"),
        ("guest-shutdown", 0, "its guest has switched itself off"),
        (None, -9, "its QEMU process was killed by SIGKILL, by hand or because the host ran out of memory"),
        (None, -25, "its QEMU process was killed by SIGXFSZ: its guest made it write more than it may"),
        (None, -11, "its QEMU process was killed by SIGSEGV"),
        (None, -33, "its QEMU process was killed by signal 33"),
        (None, 1, "its QEMU process has ended with status 1"),
        ("of-a-later-qemu", None, "its QEMU process has ended"),
    ],
)
def test_the_cause_in_words(reason: str | None, status: int | None, said: str) -> None:
    assert in_words(reason, status) == said
