"""``vm-kernel doctor --security``: each verdict from facts made up here, and all of them from this host."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.cli.command import vm_kernel
from vm_kernel.commands.doctor import Check
from vm_kernel.commands.security_checklist import ACROSS_VMS, judge
from vm_kernel.commands.security_facts import Bounds, Facts, Qemu, Swap
from vm_kernel.pool.client import Lease

#: a host of which nothing can be said
GOOD = Facts(
    accelerator="kvm",
    kernel="6.12.1",
    qemu="10.0.2",
    libvirt="11.3.0",
    smt="0",
    ksm="0",
    nested="0",
    ptrace_scope="1",
    core_pattern="core",
    microcode="0x1",
    seccomp_actions="kill_process errno",
    user="vm-kernel",
    uid=999,
    vulnerabilities={"l1tf": "Not affected", "mds": "Mitigation: Clear CPU buffers; SMT disabled"},
    qemus=[Qemu(7, 999, "2", "1", "0" * 16)],
    bounds=Bounds(2, "8589934592", "200000 100000", "8192", True),
)


def verdict(name: str, **changed: object) -> Check:
    return next(check for check in judge(replace(GOOD, **changed)) if check.name == name)


def test_a_good_host_has_nothing_to_complain_of() -> None:
    assert [check.name for check in judge(GOOD) if check.level != "ok"] == []


@pytest.mark.parametrize(
    ("name", "level", "said", "changed"),
    [
        ("accelerator", "fail", "TCG", {"accelerator": "tcg"}),
        ("golden memory", "warn", "default, teaching share", {"sharing": ["default", "teaching"]}),
        ("user", "fail", "root", {"uid": 0}),
        ("user", "fail", "root", {"qemus": [Qemu(7, 0, "2", "1", "0")]}),
        ("user", "fail", "capabilities", {"qemus": [Qemu(7, 999, "2", "1", "0000000000000400")]}),
        ("user", "warn", "runs as alice", {"user": "alice", "uid": 1000}),
        ("user", "warn", "does not exist", {"uid": -1}),
        ("seccomp", "fail", "no seccomp", {"seccomp_actions": ""}),
        ("seccomp", "fail", "[7] runs without", {"qemus": [Qemu(7, 999, "0", "1", "0")]}),
        ("seccomp", "ok", "none runs now", {"qemus": []}),
        ("CPU flaws", "fail", "l1tf: Vulnerable", {"vulnerabilities": {"l1tf": "Vulnerable"}}),
        ("CPU flaws", "warn", "mds", {"vulnerabilities": {"mds": "Mitigation: buffers; SMT vulnerable"}}),
        ("CPU flaws", "warn", "within one system", {"vulnerabilities": {"spec_store_bypass": "Vulnerable"}}),
        ("CPU flaws", "warn", "does not say", {"vulnerabilities": {}}),
        ("SMT", "warn", "on", {"smt": "1"}),
        ("SMT", "ok", "shows none", {"smt": ""}),
        ("microcode", "fail", "old", {"vulnerabilities": {"old_microcode": "Vulnerable"}}),
        ("microcode", "fail", "lacks", {"vulnerabilities": {"spec_rstack_overflow": "Vulnerable: no microcode"}}),
        ("microcode", "warn", "provider", {"is_guest": True}),
        ("KSM", "warn", "on", {"ksm": "1"}),
        ("swap", "ok", "encrypted", {"swaps": [Swap("/dev/dm-0", True)]}),
        ("swap", "warn", "/dev/sda2", {"swaps": [Swap("/dev/dm-0", True), Swap("/dev/sda2", False)]}),
        ("swap", "warn", "not known", {"swaps": [Swap("/swapfile", None)]}),
        ("core files", "ok", "/bin/handler", {"core_pattern": "|/bin/handler %p"}),
        ("nested KVM", "warn", "on", {"nested": "Y"}),
        ("nested KVM", "ok", "not loaded", {"nested": ""}),
        ("ptrace", "warn", "could read", {"ptrace_scope": "0"}),
        ("cgroup", "warn", "no control groups", {"bounds": Bounds()}),
        ("cgroup", "warn", "any amount of CPU, tasks", {"bounds": Bounds(2, "1073741824", "", "", True)}),
        ("cgroup", "warn", "version 1, our own", {"bounds": Bounds(1)}),
        ("cgroup", "ok", "a scope of systemd's", {"bounds": Bounds(2, "80%", "weight 50", "8192", scope=True)}),
    ],
)
def test_verdicts(name: str, level: str, said: str, changed: dict[str, object]) -> None:
    check = verdict(name, **changed)
    assert check.level == level
    assert said in check.summary
    assert check.hint or level == "ok", "what to do is said"


def test_every_flaw_across_vms_weighs() -> None:
    for flaw in ACROSS_VMS:
        assert verdict("CPU flaws", vulnerabilities={flaw: "Vulnerable"}).level == "fail"


def test_this_host_is_gone_through_while_a_vm_runs(lease: Lease) -> None:
    done = vm_kernel("doctor", "--security", "--json")
    report = json.loads(done.stdout)
    found = {check["name"]: check for check in report["checks"]}
    assert list(found) == [check.name for check in judge(GOOD)]
    assert done.returncode == int(any(check["level"] == "fail" for check in found.values()))
    assert found["accelerator"]["level"] == ("fail" if lease.vm.accelerator == "tcg" else "ok")
    assert found["seccomp"]["level"] == "ok"
    assert "seen on" in found["seccomp"]["summary"]
    assert found["user"]["level"] != "fail"
    assert "the pool service's" in found["cgroup"]["summary"] or "no control groups" in found["cgroup"]["summary"]
    assert found["versions"]["summary"].startswith("Linux ")
    assert all(check["hint"] for check in found.values() if check["level"] != "ok")
