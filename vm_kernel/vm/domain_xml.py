"""libvirt domain XML for a template VM and its clones: pure functions from values to text.

The machine has as few devices as possible: every one costs boot time, memory, and attack surface. A clone must have
exactly the template's devices, or its device state does not load; so both come from one text, and the few places in
which they differ are the fields of :class:`Role`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID
from xml.sax.saxutils import escape, quoteattr

from vm_kernel.vm.spec import CHANNEL_NAME, VMSpec

#: Upper limit of QEMU's cache of translated code, in MiB. QEMU takes of it what it needs, and drops all of it when it
#: is full. Becoming warm fills 28 MiB: with a limit of 16 an idle clone is 13 MB smaller, but its first cell takes 3
#: times as long. With 48 a cell that starts three Python programs costs 0.5 to 0.8 s of processor time, with 96 0.4 to
#: 0.6 s, and the host 50 MB more. A template runs through far more code than most sessions, once, and gives it back.
CLONE_TCG_CACHE_MIB = 96
TEMPLATE_TCG_CACHE_MIB = 256

#: By it our domains are known among others' on a shared libvirt (qemu:///session).
DOMAIN_TITLE = "VM Sandbox (vm-kernel)"

_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

#: What QEMU's emulated processor could do and had better not. With "fast" string instructions (erms, fsrm) the guest's
#: kernel and C library copy and clear memory, and QEMU emulates them byte by byte: without them it reads a file in a
#: fifth of the time, clears new memory in a third, forks in four fifths (QEMU 7.2). svm: an emulated hypervisor is
#: nothing for a guest to play with.
NOT_EMULATED = ("erms", "fsrm", "svm")


@dataclass(frozen=True)
class Role:
    """In what a template and a clone differ.

    boot: the template boots a kernel; a clone has none (QEMU would keep a copy of kernel and initrd in its heap).
    ram_path: what QEMU maps as the guest's RAM. ram_shared: the template changes it, a clone maps it privately.
    ram_read_only: QEMU opens it without the right to write, which not every QEMU can (``capabilities``).
    console_log: file for the guest's serial console; None throws it away (a guest could fill the disk).
    channel: unix socket of the virtio-serial channel; None gives the guest a port that nobody is connected to.
    """

    boot: bool
    ram_path: Path
    ram_shared: bool
    console_log: Path | None
    channel: Path | None
    ram_read_only: bool = False


def command_line(spec: VMSpec) -> str:
    """The kernel's command line. Part of the golden key, as is everything else in the template's XML."""
    words = [
        "console=ttyS0 quiet panic=-1",
        # Devices that are not there need not be probed for, and self-tests were Debian's to run.
        "8250.nr_uarts=1 i8042.noaux i8042.nokbd i8042.nopnp no_timer_check cryptomgr.notests nowatchdog audit=0",
        # Huge pages would make a clone copy 2 MiB for every small change.
        "transparent_hugepage=never",
        # A VM runs one session's code: protecting its processes from each other would only slow it down.
        "mitigations=off init_on_alloc=0",
        f"vm_kernel.transport={spec.transport}",
    ]
    if spec.preload:
        words.append(f"vm_kernel.preload={','.join(spec.preload)}")
    return " ".join(words)


def domain_xml(spec: VMSpec, role: Role, name: str, uuid: UUID, generation: UUID) -> str:
    """The domain. ``generation`` is what the guest's vmgenid device shows: new for every clone."""
    return f"""\
<domain type='{"kvm" if spec.accelerator == "kvm" else "qemu"}' xmlns:qemu='{_QEMU_NAMESPACE}'>
  <name>{escape(name)}</name>
  <uuid>{uuid}</uuid>
  <genid>{generation}</genid>
  <title>{DOMAIN_TITLE}</title>
  <memory unit='MiB'>{spec.memory_mib}</memory>
  <!-- KSM would merge pages of different sessions: by the time of a write, one could tell what another has. -->
  <memoryBacking><nosharepages/></memoryBacking>
  <vcpu>{spec.vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    {_boot(spec) if role.boot else ""}
  </os>
  <features><acpi/><apic/><vmport state='off'/>{_tcg(spec, role)}</features>
  {_cpu(spec)}
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file={quoteattr(str(spec.root))}/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {_console(role.console_log)}
    {_transport(spec, role.channel)}
  </devices>
  <qemu:commandline>
    <qemu:arg value='-object'/>
    <qemu:arg value={quoteattr(_ram(spec, role))}/>
    <!-- No system management mode: nothing needs it, and it is more of QEMU that a guest could reach. -->
    <qemu:arg value='-machine'/><qemu:arg value='memory-backend=golden,smm=off'/>
    <!-- Device state that was saved without RAM has no section about the configuration; so nothing of ours has one. -->
    <qemu:arg value='-global'/><qemu:arg value='migration.send-configuration=off'/>
    {"" if role.boot else "<qemu:arg value='-incoming'/><qemu:arg value='defer'/>"}
  </qemu:commandline>
  <qemu:capabilities>
    <!-- Without it libvirt asks for the CPU's features in one question instead of 400: 0.2 s less for each VM. -->
    <qemu:del capability='cpu-unavailable-features'/>
  </qemu:capabilities>
</domain>
"""


def _boot(spec: VMSpec) -> str:
    return (
        f"<kernel>{escape(str(spec.kernel))}</kernel>"
        f"<initrd>{escape(str(spec.initrd))}</initrd>"
        f"<cmdline>{escape(command_line(spec))}</cmdline>"
    )


def _tcg(spec: VMSpec, role: Role) -> str:
    if spec.accelerator == "kvm":
        return ""
    mib = TEMPLATE_TCG_CACHE_MIB if role.boot else CLONE_TCG_CACHE_MIB
    return f"<tcg><tb-cache unit='MiB'>{mib}</tb-cache></tcg>"


def _cpu(spec: VMSpec) -> str:
    if spec.accelerator == "kvm":
        return "<cpu mode='host-passthrough' check='none'/>"
    features = "".join(f"<feature policy='disable' name='{name}'/>" for name in NOT_EMULATED)
    return f"<cpu mode='maximum' check='none'>{features}</cpu>"


def _console(log: Path | None) -> str:
    target = "<target type='isa-serial' port='0'/>"
    if log is None:
        return f"<serial type='null'>{target}</serial>"
    return f"<serial type='file'><source path={quoteattr(str(log))}/>{target}</serial>"


def _transport(spec: VMSpec, channel: Path | None) -> str:
    if spec.transport == "vsock":
        return "<vsock model='virtio'><cid auto='yes'/></vsock>"
    source = "<channel type='null'>"
    if channel is not None:
        source = f"<channel type='unix'><source mode='bind' path={quoteattr(str(channel))}/>"
    return f"""\
<controller type='virtio-serial' index='0' ports='2'/>
    {source}<target type='virtio' name='{CHANNEL_NAME}'/></channel>"""


def _ram(spec: VMSpec, role: Role) -> str:
    share = "on" if role.ram_shared else "off"
    # rom: RAM all the same; without it, QEMU would take memory that is opened read-only for a ROM
    access = ",readonly=on,rom=off" if role.ram_read_only else ""
    # writing to each page of a private mapping makes it the VM's own, and that is how QEMU allocates ahead
    own = "" if role.boot or spec.share_memory else ",prealloc=on"
    where = f"mem-path={role.ram_path},share={share}{access}{own}"
    return f"memory-backend-file,id=golden,size={spec.memory_mib}M,{where},merge=off,dump=off"
