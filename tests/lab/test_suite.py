"""What the lab's reports say, and what is left to do after a crash. Without a lab."""

from __future__ import annotations

import json
from pathlib import Path

from tests.lab.suite import Outcome, command, outcomes


def line(name: str, when: str, outcome: str = "passed", longrepr: object = None) -> str:
    return json.dumps(
        {"$report_type": "TestReport", "nodeid": name, "when": when, "outcome": outcome, "longrepr": longrepr}
    )


def all_passed(name: str) -> list[str]:
    return [line(name, when) for when in ("setup", "call", "teardown")]


def test_a_repeated_test_has_passed_in_the_end(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    failed = [line("a", "setup"), line("a", "call", "rerun", "no reply"), line("a", "teardown")]
    reports.write_text("\n".join([*failed, *all_passed("a"), *all_passed("b"), json.dumps({"pytest_version": "9"})]))
    assert outcomes(reports) == {"a": Outcome(True, 1), "b": Outcome(True, 0)}


def test_what_fails_or_is_skipped_has_not_passed(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    lines = [line("a", "setup"), line("a", "call", "failed", "why"), line("a", "teardown")]
    lines += [line("b", "setup", "skipped", "why"), line("b", "teardown")]
    lines += [line("c", "setup"), line("c", "call"), line("c", "teardown", "failed", "why")]
    reports.write_text("\n".join(lines))
    assert {name: outcome.passed for name, outcome in outcomes(reports).items()} == {"a": False, "b": False, "c": False}
    assert all("why" in outcome.said for outcome in outcomes(reports).values())


def test_after_a_crash_only_what_has_not_passed_is_done(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.write_text("")
    assert "--deselect" not in command(reports, figures=False)[2]
    begun = [line("c", "setup"), line("c", "call")[:40]]
    reports.write_text("\n".join([*all_passed("a"), *all_passed("b[x y]"), *begun]))
    assert "--deselect=a '--deselect=b[x y]';" in command(reports, figures=False)[2]
    assert "=c" not in command(reports, figures=False)[2]


def test_figures_are_measured_for_whoever_asks(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.touch()
    assert "benchmarks" in command(reports, figures=True)[2]
    assert "benchmarks" not in command(reports, figures=False)[2]
