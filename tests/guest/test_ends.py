"""What the guest says of the end of its Python becomes our words, whatever it says. With real ends: tests/kernel."""

from __future__ import annotations

from typing import Any

import pytest

from vm_kernel.guest.ends import python_ended


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"exit_code": 0}, "ended itself, with status 0"),
        ({"signal": 11, "exit_code": None}, "crashed (SIGSEGV)"),
        ({"signal": 15}, "killed by SIGTERM"),
        ({"signal": 33}, "killed by signal 33"),
        ({"signal": 9, "out_of_memory": True}, "ran out of memory. The VM has 512 MiB"),
        ({"signal": 9, "out_of_memory": "yes"}, "killed by SIGKILL"),
        ({}, "no reason is known"),
        ({"signal": "<script>", "exit_code": "<script>"}, "no reason is known"),
        ({"signal": [1], "exit_code": 1 << 70}, "no reason is known"),
        ({"signal": -1, "exit_code": -1}, "no reason is known"),
        ({"signal": 1 << 70, "exit_code": 3}, "ended itself, with status 3"),
    ],
)
def test_the_cause_in_words(fields: dict[str, Any], said: str) -> None:
    error = python_ended(fields, 512)
    assert said in error.message
    assert len(str(error)) < 400
    assert "restart" in error.hint
