"""The production path, KVM and vsock, proven on any machine: a lab host is booted, and tests run inside it.

The lab host works beside all other tests: it is started when they have been collected, and looked at last.
"""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.lab.conftest import Lab
from tests.lab.suite import CHOSEN


@pytest.mark.timeout(2000)
def test_the_tests_inside_pass(lab_host: Lab) -> None:
    suite = ElementTree.parse(lab_host.results() / "junit.xml").getroot()
    cases = list(suite.iter("testcase"))
    bad = {
        f"{case.get('classname')}::{case.get('name')}": outcome.get("message")
        for case in cases
        for outcome in case
        if outcome.tag in ("failure", "error", "skipped")
    }
    assert not bad, f"{lab_host.log} has the whole story"
    assert len(cases) >= len(CHOSEN)
    assert lab_host.process.returncode == 0


@pytest.mark.timeout(2000)
def test_its_figures_are_of_kvm_and_vsock_beside_ipykernel(lab_host: Lab) -> None:
    report = json.loads((lab_host.results() / "benchmarks.json").read_text())
    assert report["accelerator"]["kind"] == "kvm"
    assert report["transport"]["kind"] == "vsock"
    for key in ("cell_whole", "completion_whole", "start_to_result", "restart_to_info", "stdout_10mb"):
        assert report["results"][key]["ratio"] > 0, key
    for key in ("clone_to_warm", "checkpoint", "rollback"):
        assert report["results"][key]["vm-sandbox"]["p50"] > 0, key


@pytest.mark.timeout(2000)
def test_nothing_is_left_in_the_lab(lab_host: Lab) -> None:
    left = Path(lab_host.results() / "processes-left").read_text()
    assert "qemu" not in left
    assert "vm_kernel" not in left
