"""What QEMU and libvirt must be able to do, and what is adapted to what they can."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.child import in_child
from vm_kernel.errors import HostError
from vm_kernel.vm import capabilities, host

BOOKWORM = {
    "commands": frozenset({"getfd", "migrate-incoming", "query-status", "stop", "cont", "xen-save-devices-state"}),
    "migration": frozenset({"send-configuration", "send-section-footer"}),
    "memory": frozenset({"share", "size", "mem-path", "readonly"}),
}
TRIXIE = BOOKWORM | {"memory": BOOKWORM["memory"] | {"rom"}}


def test_memory_is_opened_read_only_where_qemu_says_that_it_can() -> None:
    assert not capabilities.judge(BOOKWORM).read_only_memory
    assert capabilities.judge(TRIXIE).read_only_memory
    assert capabilities.judge(BOOKWORM).sentence != capabilities.judge(TRIXIE).sentence


@pytest.mark.parametrize("lacking", [{"commands": frozenset({"getfd"})}, {"migration": frozenset()}])
def test_a_qemu_that_lacks_what_every_vm_needs_is_turned_away(lacking: dict[str, frozenset[str]]) -> None:
    with pytest.raises(HostError, match=r"lacks .*(xen-save-devices-state|send-configuration)") as caught:
        capabilities.judge(TRIXIE | lacking)
    assert "qemu-system-x86" in caught.value.hint


def test_versions_that_are_too_old_are_turned_away() -> None:
    for good in ("7.2.0", "7.10", "10.0.13"):
        capabilities.check_version("QEMU", good, capabilities.LOWEST_QEMU, "qemu-system-x86")
    for old in ("6.2.0", "7.1.9", "2.11"):
        with pytest.raises(HostError, match=f"QEMU {old} is too old: .* 7.2 or newer") as caught:
            capabilities.check_version("QEMU", old, capabilities.LOWEST_QEMU, "qemu-system-x86")
        assert "qemu-system-x86" in caught.value.hint


def test_this_hosts_are_supported_and_asked_once() -> None:
    def body() -> None:
        assert capabilities.check_libvirt() == host.libvirt_version()
        found = capabilities.of_qemu()
        assert capabilities.of_qemu() is found

    in_child(body)


def test_a_program_that_is_no_qemu_is_reported() -> None:
    def body() -> None:
        with pytest.raises(HostError, match="does not say what it can do"):
            capabilities._asked(Path("/bin/true"), 0)

    in_child(body)
