"""The lab host's figures: ratios of the production path to a stock ipykernel beside it. Of ``make test-lab`` alone."""

from __future__ import annotations

import json

import pytest

from tests.lab.conftest import Lab


@pytest.mark.timeout(3000)
def test_its_figures_are_of_kvm_and_vsock_beside_ipykernel(lab_host: Lab) -> None:
    report = json.loads((lab_host.results / "benchmarks.json").read_text())
    assert report["accelerator"]["kind"] == "kvm"
    assert report["transport"]["kind"] == "vsock"
    for key in ("cell_whole", "completion_whole", "start_to_result", "restart_to_info", "stdout_2mb"):
        assert report["results"][key]["ratio"] > 0, key
    for key in ("clone_to_warm", "checkpoint", "rollback"):
        assert report["results"][key]["vm-sandbox"]["p50"] > 0, key
