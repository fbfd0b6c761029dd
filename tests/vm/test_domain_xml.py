"""The machine has the devices that it needs, and no others; a clone has the template's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree

from guest_agent.agent import preloaded
from vm_kernel.vm.domain_xml import Role, command_line, domain_xml
from vm_kernel.vm.spec import VMSpec

SPEC = VMSpec(
    kernel=Path("/images/<odd> & 'name'/vmlinux"),
    initrd=Path("/boot/initrd"),
    root=Path("/images/root.erofs"),
    image_digest="i",
    agent_digest="a",
    memory_mib=384,
    vcpus=1,
    accelerator="tcg",
    transport="virtio-serial",
)
RAM = Path("/proc/1/fd/9")
TEMPLATE = Role(boot=True, ram_path=RAM, ram_shared=True, console_log=Path("/run/console"), channel=None)
CLONE = Role(boot=False, ram_path=RAM, ram_shared=False, console_log=None, channel=Path("/run/vm.sock"))


def parse(spec: VMSpec, role: Role) -> ElementTree.Element:
    return ElementTree.fromstring(domain_xml(spec, role, "vm-1", UUID(int=1), UUID(int=2)))


def devices(root: ElementTree.Element) -> list[str]:
    return [device.tag for device in root.iterfind("devices/*") if device.get("model") != "none"]


def arguments(root: ElementTree.Element) -> str:
    return " ".join(arg.attrib["value"] for arg in root.iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg"))


def test_template_and_clone_have_the_same_few_devices() -> None:
    assert devices(parse(SPEC, TEMPLATE)) == devices(parse(SPEC, CLONE)) == ["disk", "serial", "controller", "channel"]
    vsock = replace(SPEC, transport="vsock")
    assert devices(parse(vsock, TEMPLATE)) == devices(parse(vsock, CLONE)) == ["disk", "serial", "vsock"]


def test_only_the_template_may_write_the_memory_image_and_only_it_boots() -> None:
    template, clone = parse(SPEC, TEMPLATE), parse(SPEC, CLONE)
    assert "share=on" in arguments(template)
    assert "share=off" in arguments(clone)
    assert "-incoming defer" in arguments(clone)
    assert template.findtext("os/kernel") == str(SPEC.kernel), "odd characters survive"
    assert clone.find("os/kernel") is None


def test_a_clone_opens_the_memory_image_read_only_if_qemu_can() -> None:
    assert "readonly" not in arguments(parse(SPEC, CLONE))
    assert "share=off,readonly=on,rom=off" in arguments(parse(SPEC, replace(CLONE, ram_read_only=True)))


def test_the_disk_is_read_only_and_a_clones_console_goes_nowhere() -> None:
    clone = parse(SPEC, CLONE)
    assert clone.find("devices/disk/readonly") is not None
    assert [serial.get("type") for serial in clone.iterfind("devices/serial")] == ["null"]


def test_the_agent_learns_its_transport_from_the_command_line() -> None:
    assert command_line(SPEC).endswith(" vm_kernel.transport=virtio-serial")
    assert command_line(replace(SPEC, transport="vsock")).endswith(" vm_kernel.transport=vsock")


def test_the_agent_learns_what_to_import_from_the_command_line() -> None:
    words = command_line(replace(SPEC, preload=("numpy", "scipy.stats"))).split()
    assert preloaded(words) == ["numpy", "scipy.stats"]
    assert preloaded(command_line(SPEC).split()) == []


def test_kvm_and_tcg() -> None:
    assert parse(SPEC, CLONE).get("type") == "qemu"
    kvm = parse(replace(SPEC, accelerator="kvm"), CLONE)
    assert kvm.get("type") == "kvm"
    assert kvm.find("features/tcg") is None
    assert [cpu.get("mode") for cpu in kvm.iterfind("cpu")] == ["host-passthrough"]
    assert not kvm.findall("cpu/feature")
    without = {feature.get("name") for feature in parse(SPEC, CLONE).iterfind("cpu/feature[@policy='disable']")}
    assert without == {"erms", "fsrm", "svm"}
