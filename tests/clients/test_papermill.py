"""papermill: parameters go in, the executed notebook comes out, whatever happens."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from tests.clients.notebooks import WHO, counts, outputs, read, run, write


def parameters() -> NotebookNode:
    """The cell that papermill's parameters replace."""
    return nbformat.v4.new_code_cell("count = 1\nname = 'default'", metadata={"tags": ["parameters"]})


def test_parameters_reach_the_vm(kernelspec: str, tmp_path: Path) -> None:
    source = write(tmp_path / "a.ipynb", parameters(), WHO, "print(name, [count] * 3)")
    target = tmp_path / "out.ipynb"
    given = {"count": 7, "name": 'O\'Hara "x" ☃'}
    papermill.execute_notebook(source, target, parameters=given, progress_bar=False)
    ran = read(target)
    default, injected, _, shown = ran.cells
    assert default.metadata.tags == ["parameters"]
    assert "injected-parameters" in injected.metadata.tags
    assert outputs(ran)[3] == 'O\'Hara "x" ☃ [7, 7, 7]\n'
    assert counts(ran) == [1, 2, 3, 4]
    assert ran.metadata.kernelspec.name == kernelspec
    facts = ran.metadata.papermill
    assert facts.parameters == given
    assert facts.exception is None
    assert facts.duration > 0
    assert shown.metadata.papermill.status == "completed"
    assert shown.metadata.papermill.exception is False


def test_a_failing_notebook_is_raised_and_saved(kernelspec: str, tmp_path: Path) -> None:
    source = write(tmp_path / "a.ipynb", "print('before')", "1 / 0", "print('never')")
    target = tmp_path / "out.ipynb"
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError: division by zero") as caught:
        papermill.execute_notebook(source, target, progress_bar=False)
    assert caught.value.exec_count == 2
    ran = read(target)
    assert "before\n" in outputs(ran)
    assert "ZeroDivisionError: division by zero" in outputs(ran)
    assert "never\n" not in outputs(ran)
    assert ran.metadata.papermill.exception is True


def test_the_command_shows_its_progress_and_the_output(kernelspec: str, tmp_path: Path) -> None:
    source = write(tmp_path / "a.ipynb", parameters(), "print('count is', count)")
    target = tmp_path / "out.ipynb"
    done = run("papermill", "-p", "count", "12", "--log-output", "--progress-bar", source, target)
    assert done.returncode == 0, done.stderr
    assert "count is 12" in done.stdout + done.stderr
    assert "3/3" in done.stderr
    assert outputs(read(target))[2] == "count is 12\n"
