"""``vm-kernel doctor --security``: what of this host makes the wall around a VM thinner, a verdict a line.

Pure: from facts (``security_facts``) to findings. fail: the wall is not there, or others are known to have come through
one like it. warn: it is thinner than it could be. What it is to hold back, and what it cannot, is in SECURITY.md.
"""

from __future__ import annotations

from collections.abc import Callable

from vm_kernel.commands.doctor import Check
from vm_kernel.commands.security_facts import Facts

#: Flaws of processors by which a guest can read what the host, or another guest, has in memory. The others in
#: /sys/devices/system/cpu/vulnerabilities concern processes of one system.
ACROSS_VMS = frozenset(
    {
        "gather_data_sampling", "indirect_target_selection", "itlb_multihit", "l1tf", "mds", "mmio_stale_data",
        "reg_file_data_sampling", "retbleed", "spec_rstack_overflow", "spectre_v2", "tsa", "tsx_async_abort", "vmscape",
    }
)  # fmt: skip
_SERVICE_HINT = "`vm-kernel pool install-service --memory-max 75% --cpu-quota 400%` has systemd bound them."


def judge(facts: Facts) -> list[Check]:
    """All findings, the heaviest subjects first."""
    steps: tuple[Callable[[Facts], Check], ...] = (
        accelerator, user, seccomp, vulnerabilities, smt, microcode, ksm, golden_memory, swap, cores, nested, ptrace,
        bounds, versions,
    )  # fmt: skip
    return [step(facts) for step in steps]


def accelerator(facts: Facts) -> Check:
    """KVM is the wall; TCG is none."""
    if facts.accelerator == "kvm":
        return Check("accelerator", "ok", "KVM: the processor keeps guests apart")
    hint = "Run hostile code on a host with KVM only; `vm-kernel doctor` says what is missing. Or trust the code."
    return Check("accelerator", "fail", "TCG: QEMU's authors do not call it a security boundary", hint)


def user(facts: Facts) -> Check:
    """Who a guest is that has broken out."""
    if facts.uid == 0 or any(qemu.uid == 0 for qemu in facts.qemus):
        return Check("user", "fail", "QEMU runs as root", "Stop it, and start it through the pool service.")
    if facts.uid < 0:
        return Check("user", "warn", "the user that root's service becomes does not exist", "See c.PoolConfig.user.")
    if any(int(qemu.effective_capabilities, 16) for qemu in facts.qemus):
        return Check("user", "fail", "QEMU has capabilities", "Start it through the pool service.")
    if facts.user == "vm-kernel":
        return Check("user", "ok", "QEMU runs as vm-kernel, who owns nothing else")
    hint = "`sudo vm-kernel pool install-service --system` gives VMs a user who owns nothing."
    return Check("user", "warn", f"QEMU runs as {facts.user}: who breaks out has that user's files", hint)


def seccomp(facts: Facts) -> Check:
    """libvirt's filter of system calls."""
    if not facts.seccomp_actions:
        return Check(
            "seccomp", "fail", "this kernel has no seccomp filters", "Use a kernel with CONFIG_SECCOMP_FILTER."
        )
    bare = [qemu.pid for qemu in facts.qemus if (qemu.seccomp, qemu.no_new_privileges) != ("2", "1")]
    if bare:
        return Check("seccomp", "fail", f"QEMU {bare} runs without a filter", "Reinstall qemu-system-x86 and libvirt.")
    seen = f"seen on {len(facts.qemus)} QEMUs" if facts.qemus else "on for every VM; none runs now"
    return Check("seccomp", "ok", f"system calls of QEMU are filtered, it can start no program ({seen})")


def vulnerabilities(facts: Facts) -> Check:
    """Flaws of the processor, by the word of the kernel."""
    if not facts.vulnerabilities:
        return Check("CPU flaws", "warn", "this kernel does not say which it knows", "Use a newer kernel.")
    open_ = {name: text for name, text in facts.vulnerabilities.items() if text.startswith("Vulnerable")}
    across = sorted(ACROSS_VMS & open_.keys())
    if across:
        said = "; ".join(f"{name}: {open_[name]}" for name in across)
        hint = "Update microcode and kernel, and do not boot with mitigations=off. In a cloud this is the provider's."
        return Check("CPU flaws", "fail", said, hint)
    half = sorted(name for name, text in facts.vulnerabilities.items() if "SMT vulnerable" in text)
    if half:
        return Check("CPU flaws", "warn", f"{', '.join(half)}: not mitigated between hyperthreads", "Switch SMT off.")
    inside = sorted(open_.keys() - {"old_microcode"})
    if inside:
        return Check(
            "CPU flaws", "warn", f"{', '.join(inside)}: open, within one system only", "Update microcode and kernel."
        )
    return Check("CPU flaws", "ok", f"all {len(facts.vulnerabilities)} that this kernel knows are absent or mitigated")


def smt(facts: Facts) -> Check:
    """Hyperthreads share caches and buffers; two VMs may be on two threads of one core."""
    if facts.smt != "1":
        said = "off" if facts.smt == "0" else "this processor (or this virtual one) shows none"
        return Check("SMT", "ok", said)
    hint = "Boot with nosmt, or `echo off > /sys/devices/system/cpu/smt/control`; it costs up to a third of the speed."
    return Check("SMT", "warn", "on: VMs on one core can time each other", hint)


def microcode(facts: Facts) -> Check:
    """The processor's own firmware."""
    if facts.vulnerabilities.get("old_microcode", "").startswith("Vulnerable"):
        hint = "Install intel-microcode or amd64-microcode and boot again."
        return Check("microcode", "fail", f"revision {facts.microcode}: the kernel calls it old", hint)
    if facts.is_guest:
        said = "this host is a virtual machine: its provider looks after the microcode"
        return Check("microcode", "warn", said, "Ask the provider; a host of one's own can be looked at.")
    if "no microcode" in " ".join(facts.vulnerabilities.values()):
        hint = "Install intel-microcode or amd64-microcode and boot again."
        return Check("microcode", "fail", f"revision {facts.microcode}: a mitigation lacks it", hint)
    return Check("microcode", "ok", f"revision {facts.microcode or 'unknown'}; the kernel has no complaint")


def ksm(facts: Facts) -> Check:
    """Pages that KSM has merged tell, by the time of a write, what others have."""
    if facts.ksm == "1":
        hint = "`echo 2 > /sys/kernel/mm/ksm/run` switches it off for the others, too."
        return Check("KSM", "warn", "on; the memory of our VMs is left out of it, that of others is not", hint)
    return Check("KSM", "ok", "off; and the memory of our VMs would be left out of it")


def golden_memory(facts: Facts) -> Check:
    """What a fork costs: pages that no VM has changed are one page for all."""
    if not facts.sharing:
        return Check("golden memory", "ok", "no VM shares memory with another")
    who = ", ".join(facts.sharing)
    said = f"VMs of {who} share the unchanged pages of a snapshot: by timing, one may see which another reads"
    hint = "Set c.PoolConfig.share_memory = False, also for a profile, if they must not learn of each other."
    return Check("golden memory", "warn", said, hint)


def swap(facts: Facts) -> Check:
    """A guest's memory, on a disk."""
    open_ = [area.name for area in facts.swaps if area.encrypted is False]
    unknown = [area.name for area in facts.swaps if area.encrypted is None]
    hint = "Encrypt it (cryptswap), use zram, or `swapoff -a`: what a session had in memory can stay on the disk."
    if open_:
        return Check("swap", "warn", f"{', '.join(open_)}: not encrypted", hint)
    if unknown:
        return Check("swap", "warn", f"{', '.join(unknown)}: a file; whether its disk is encrypted is not known", hint)
    return Check("swap", "ok", "encrypted" if facts.swaps else "none")


def cores(facts: Facts) -> Check:
    """Where the host puts core files."""
    said = "QEMU writes no core file, and guest memory would not be in one"
    if facts.core_pattern.startswith("|"):
        said += f"; a handler ({facts.core_pattern[1:].split()[0]}) is asked for all the same"
    return Check("core files", "ok", said)


def nested(facts: Facts) -> Check:
    """Virtualization within guests: more of KVM that a guest can reach."""
    if facts.nested in ("1", "Y"):
        hint = "`options kvm_intel nested=0` (or kvm_amd) in /etc/modprobe.d; our VMs do not need it."
        return Check("nested KVM", "warn", "on: guests reach the most intricate part of KVM", hint)
    return Check("nested KVM", "ok", "off" if facts.nested else "KVM is not loaded")


def ptrace(facts: Facts) -> Check:
    """Whether processes of one user may read each other's memory."""
    if facts.ptrace_scope in ("1", "2", "3"):
        return Check("ptrace", "ok", f"kernel.yama.ptrace_scope = {facts.ptrace_scope}")
    said = "any process of the service's user could read a VM's memory" if facts.ptrace_scope == "0" else "no Yama"
    return Check("ptrace", "warn", said, "`sysctl kernel.yama.ptrace_scope=1`, or a user for the service alone.")


def bounds(facts: Facts) -> Check:
    """What all VMs together may take."""
    found = facts.bounds
    whose = "the pool service's" if found.running else "our own, from which the service would be started"
    if found.scope:
        whose = "a scope of systemd's, in which the service would be started"
    if found.version == 0:
        return Check(
            "cgroup", "warn", "this host has no control groups: nothing bounds all VMs together", _SERVICE_HINT
        )
    named = {"memory": found.memory, "CPU": found.cpu, "tasks": found.tasks}
    said = ", ".join(f"{name} {value}" for name, value in named.items() if value) or "no limit"
    group = f"version {found.version}, {whose}: {said}"
    if missing := [name for name, value in named.items() if not value]:
        unbound = f"{group}; all VMs together may take any amount of {', '.join(missing)}"
        return Check("cgroup", "warn", unbound, _SERVICE_HINT)
    return Check("cgroup", "ok", group)


def versions(facts: Facts) -> Check:
    """To be compared with the distribution's security updates, which a version number does not show."""
    said = f"Linux {facts.kernel}, QEMU {facts.qemu}, libvirt {facts.libvirt}"
    return Check("versions", "ok", f"{said}: keep them up to date (unattended-upgrades)")
