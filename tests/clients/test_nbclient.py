"""nbclient, from which most programs that execute notebooks are made."""

from __future__ import annotations

import asyncio

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from tests.clients.notebooks import WHO, counts, notebook, outputs, plain
from tests.conftest import leases, wait_until


def test_a_notebook_runs_and_gives_its_vm_back(kernelspec: str) -> None:
    ran = notebook(WHO, "x = 40", "from IPython.display import HTML\nHTML('<b>bold</b>')", "x + 2")
    NotebookClient(ran, timeout=60).execute()
    assert counts(ran) == [1, 2, 3, 4]
    assert ran.cells[2].outputs[0].data["text/html"] == "<b>bold</b>"
    assert outputs(ran)[3] == "42"
    assert ran.metadata.kernelspec.name == kernelspec
    assert ran.metadata.language_info.name == "python"
    wait_until(lambda: leases() == 0, 60.0, "the notebook's VM has been given back")


async def test_notebooks_in_parallel_have_a_vm_each_and_keep_their_outputs_apart(kernelspec: str) -> None:
    talk = "import time\nfor n in range(20):\n    print(whose, n, flush=True)\n    time.sleep(0.02)"
    books = [notebook(WHO, f"whose = {name!r}", talk, "whose") for name in "abcd"]
    await asyncio.gather(*(NotebookClient(book, timeout=90).async_execute() for book in books))
    assert len({outputs(book)[0] for book in books}) == len(books), "no two in one VM"
    for name, book in zip("abcd", books, strict=True):
        assert outputs(book)[2:] == ["".join(f"{name} {n}\n" for n in range(20)), repr(name)]


def test_a_failing_cell_is_raised_with_its_traceback_and_the_rest_does_not_run(kernelspec: str) -> None:
    ran = notebook("def f():\n    return 1 / 0", "f()", "print('never')")
    with pytest.raises(CellExecutionError) as caught:
        NotebookClient(ran, timeout=60).execute()
    assert "ZeroDivisionError: division by zero" in plain(caught.value)
    assert outputs(ran) == ["", "ZeroDivisionError: division by zero", ""]
    assert "return" in "\n".join(ran.cells[1].outputs[0].traceback)


def test_errors_can_be_allowed(kernelspec: str) -> None:
    may_fail = nbformat.v4.new_code_cell("{}['tagged']", metadata={"tags": ["raises-exception"]})
    ran = notebook("1 / 0", may_fail, "print('after')")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        NotebookClient(ran, timeout=60).execute()
    ran.cells.pop(0)
    NotebookClient(ran, timeout=60).execute()
    assert outputs(ran) == ["KeyError: 'tagged'", "after\n"]
    ran = notebook("1 / 0", "print('after')")
    NotebookClient(ran, timeout=60, allow_errors=True).execute()
    assert outputs(ran) == ["ZeroDivisionError: division by zero", "after\n"]


def test_a_cell_that_takes_too_long_is_an_error(kernelspec: str) -> None:
    ran = notebook("print('begun', flush=True)\nwhile True: pass")
    with pytest.raises(CellTimeoutError):
        NotebookClient(ran, timeout=6).execute()
    assert outputs(ran) == ["begun\n"]
    wait_until(lambda: leases() == 0, 60.0, "the VM of a cell that never ends has been taken back")


def test_or_is_interrupted_and_the_next_one_runs(kernelspec: str) -> None:
    ran = notebook("import time\ntime.sleep(100)", "1 + 1")
    client = NotebookClient(ran, timeout=6, interrupt_on_timeout=True, allow_errors=True)
    client.execute()
    assert outputs(ran)[0].startswith("KeyboardInterrupt")
    assert outputs(ran)[1] == "2"


def test_output_that_is_replaced_is_replaced_in_the_notebook(kernelspec: str) -> None:
    ran = notebook(
        "from IPython.display import clear_output, display\nh = display('first', display_id=True)",
        "h.update('second')",
        "for n in range(5):\n    clear_output(wait=True)\n    print(n)",
    )
    NotebookClient(ran, timeout=60).execute()
    assert outputs(ran) == ["'second'", "", "4\n"]


def test_widgets_are_kept_in_the_notebook(kernelspec: str) -> None:
    ran = notebook(
        "import ipywidgets\nslider = ipywidgets.IntSlider(value=3)\nslider",
        "out = ipywidgets.Output()\nwith out:\n    print('captured')\nout",
        "slider.value = 7",
    )
    NotebookClient(ran, timeout=60).execute()
    state = ran.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    view = ran.cells[0].outputs[0].data["application/vnd.jupyter.widget-view+json"]
    assert state[view.model_id]["state"]["value"] == 7
    captured = ran.cells[1].outputs[0].data["application/vnd.jupyter.widget-view+json"]
    assert state[captured.model_id]["state"]["outputs"][0]["text"] == "captured\n"
