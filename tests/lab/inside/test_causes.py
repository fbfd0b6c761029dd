"""What is missing on a host is named, with the command that mends it: modules taken away and permissions, for real."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CONFIG, stop_service, write_config
from tests.guest_session import GuestSession
from vm_kernel.errors import HostError
from vm_kernel.pool.client import PoolConnection

_KVM, _VSOCK = "/dev/kvm", "/dev/vhost-vsock"
#: what is done to the host; by the check of the doctor that sees it: what it says, what it tells to do
TROUBLES: dict[str, dict[str, tuple[str, str]]] = {
    "modprobe -r kvm_amd vhost_vsock": {
        "accelerator": (f"{_KVM} does not exist: the kernel module kvm_amd", "modprobe kvm_amd"),
        "transport": (f"{_VSOCK} does not exist: the kernel module", "modprobe vhost_vsock"),
    },
    f"chmod 600 {_KVM} {_VSOCK}": {
        "accelerator": (f"{_KVM} cannot be opened by user lab", f"chgrp kvm {_KVM}"),
        "transport": (f"{_VSOCK} cannot be opened by user lab", f"chgrp kvm {_VSOCK}"),
    },
    f"chgrp adm {_KVM}": {"accelerator": ("it is for the group adm", "usermod -aG adm lab")},
}


def as_root(command: str) -> None:
    subprocess.run(["sudo", "sh", "-ec", command], check=True)


@pytest.fixture
def host(vm_home: Path) -> Iterator[None]:
    """No VM runs; afterwards the host is as it was."""
    stop_service()
    yield
    stop_service()
    write_config(CONFIG)
    as_root(f"modprobe kvm_amd; modprobe vhost_vsock; chgrp kvm {_KVM} {_VSOCK}; chmod 660 {_KVM} {_VSOCK}")


@pytest.mark.parametrize("command", TROUBLES)
def test_the_doctor_and_the_pool_name_cause_and_remedy(host: None, command: str) -> None:
    # a module is in use until the last QEMU has gone
    as_root(f"for n in $(seq 30); do {command} && exit; sleep 1; done; exit 1")
    told = subprocess.run(["vm-kernel", "doctor", "--json"], capture_output=True, text=True, check=False)
    checks = {entry["name"]: entry for entry in json.loads(told.stdout)["checks"]}
    for check, (cause, remedy) in TROUBLES[command].items():
        # a virtio port serves as well as vsock, so the doctor only says what it would take
        assert checks[check]["level"] == ("warn" if check == "accelerator" else "ok")
        assert cause in checks[check]["summary"]
        assert remedy in checks[check]["hint"]

        stop_service()
        write_config(f"{CONFIG}\nc.PoolConfig.{check} = '{'kvm' if check == 'accelerator' else 'vsock'}'\n")
        connection = PoolConnection.open()
        try:
            with pytest.raises(HostError) as raised:
                connection.acquire()
        finally:
            connection.close()
        assert cause in raised.value.message
        assert remedy in raised.value.hint


def test_all_is_well_again(vm_home: Path) -> None:
    connection = PoolConnection.open()
    try:
        lease = connection.acquire()
        assert (lease.vm.accelerator, lease.vm.transport) == ("kvm", "vsock")
        assert GuestSession(lease).value("6 * 7") == 42
    finally:
        connection.close()
