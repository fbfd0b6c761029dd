"""Why a device cannot be used is told with the command that mends it. In the lab host each is tried for real."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.vm.child import in_child
from vm_kernel.vm import devices
from vm_kernel.vm.devices import KVM, VSOCK, Facts

NO_KVM = Facts(
    device=KVM,
    error=errno.ENOENT,
    module="kvm_intel",
    module_state="loadable",
    group="",
    user="ada",
    member=False,
    container=False,
    release="6.1.0-amd64",
)
NO_VSOCK = replace(NO_KVM, device=VSOCK, module="vhost_vsock")
SHUT = replace(NO_KVM, error=errno.EACCES, module_state="there", group="virt")
DARK = replace(NO_KVM, virtualization=False)


@pytest.mark.parametrize(
    ("facts", "cause", "remedy"),
    [
        (NO_KVM, "kvm_intel is not loaded", "sudo modprobe kvm_intel;"),
        (NO_KVM, "does not exist", "echo kvm_intel | sudo tee -a /etc/modules-load.d/"),
        (replace(NO_KVM, module="kvm_amd"), "kvm_amd is not loaded", "sudo modprobe kvm_amd;"),
        (replace(NO_KVM, error=errno.ENODEV), "Nothing drives /dev/kvm: the kernel module", "modprobe kvm_intel"),
        (replace(NO_KVM, module_state="there"), "although kvm_intel is loaded", "udevadm trigger /dev/kvm"),
        (DARK, "no svm or vmx", "firmware"),
        (replace(DARK, guest=True), "is a virtual machine", "nested virtualization"),
        (replace(NO_KVM, container=True), "in this container", "--device /dev/kvm"),
        (NO_VSOCK, "vhost_vsock is not loaded", "sudo modprobe vhost_vsock;"),
        (NO_VSOCK, "does not exist", "echo vhost_vsock | sudo tee -a /etc/modules-load.d/"),
        (replace(NO_VSOCK, virtualization=False), "vhost_vsock is not loaded", "modprobe vhost_vsock"),
        (replace(NO_VSOCK, module_state="not made"), "(6.1.0-amd64) was built without", "linux-image-amd64"),
        (replace(NO_VSOCK, module_state="unknown"), "no modules for this kernel", "Boot the kernel that is installed"),
        (replace(NO_VSOCK, container=True), "in this container", "modprobe vhost_vsock"),
        (SHUT, "cannot be opened by user ada (Permission denied)", "sudo usermod -aG virt ada"),
        (replace(SHUT, member=True), "before ada was in the group virt", "Log in again"),
        (replace(SHUT, group=""), "for root alone", "sudo chgrp kvm /dev/kvm; sudo chmod 660 /dev/kvm"),
        (replace(SHUT, group=""), "for root alone", "sudo usermod -aG kvm ada"),
        (replace(SHUT, device=VSOCK, group=""), "for root alone", 'KERNEL=="vhost-vsock", GROUP="kvm"'),
        (replace(SHUT, user="root", error=errno.EPERM), "this container may not", "--device /dev/kvm"),
        (replace(NO_KVM, error=errno.EBUSY), "Device or resource busy", "dmesg"),
    ],
)
def test_the_cause_is_named_with_the_command_that_mends_it(facts: Facts, cause: str, remedy: str) -> None:
    found = devices.trouble(facts)
    assert cause in found.cause
    assert remedy in found.remedy
    assert str(facts.device) in found.cause
    assert found.cause.endswith(".")


def test_this_hosts_devices_are_looked_at_as_the_user_who_will_run_qemu() -> None:
    def body() -> None:
        for device in (KVM, VSOCK):
            facts = devices.look(device)
            assert facts.user != "root"
            assert (devices.usable(device) is None) == (facts.error == 0)
            if facts.error:
                assert devices.trouble(facts) == devices.usable(device)

    in_child(body)


def test_a_module_is_known_by_any_of_its_spellings() -> None:
    assert devices._named("kernel/drivers/vhost/vhost_vsock.ko.xz: kernel/drivers/vhost/vhost.ko.xz", "vhost_vsock")
    assert devices._named("kernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko", "kvm_amd")
    assert not devices._named("kernel/arch/x86/kvm/kvm.ko:", "kvm_amd")
