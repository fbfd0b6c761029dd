"""``jupyter execute`` and ``jupyter nbconvert --execute``, as a user calls them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.clients.notebooks import WHO, counts, outputs, read, run, write


def test_jupyter_execute(kernelspec: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", WHO, "import os; os.getuid()", "%vm_info")
    done = run("jupyter-execute", "--output=out", path)
    assert done.returncode == 0, done.stderr
    ran = read(tmp_path / "out.ipynb")
    who, uid, info = outputs(ran)
    assert who.strip() in info, "it ran in the VM that the host tells of"
    assert uid == "1000"
    assert counts(ran) == [1, 2, 3]
    assert counts(read(path)) == [None, None, None]


def test_jupyter_execute_fails_with_the_notebook_unless_errors_are_allowed(kernelspec: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "print('before')", "1 / 0", "print('after')")
    done = run("jupyter-execute", "--inplace", path)
    assert done.returncode != 0
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert outputs(read(path)) == ["", "", ""], "a notebook that failed is not overwritten"
    done = run("jupyter-execute", "--inplace", "--allow-errors", path)
    assert done.returncode == 0, done.stderr
    assert outputs(read(path)) == ["before\n", "ZeroDivisionError: division by zero", "after\n"]


def test_jupyter_execute_with_a_timeout_does_not_wait_for_ever(kernelspec: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "while True: pass")
    done = run("jupyter-execute", "--timeout=3", path)
    assert done.returncode != 0
    assert "CellTimeoutError" in done.stderr


def test_nbconvert_to_a_notebook(kernelspec: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", WHO, "6 * 7")
    done = run("jupyter-nbconvert", "--execute", "--to", "notebook", "--output", "out", path)
    assert done.returncode == 0, done.stderr
    ran = read(tmp_path / "out.ipynb")
    assert outputs(ran)[1] == "42"
    assert ran.metadata.kernelspec.name == kernelspec, "the notebook keeps its choice"


def test_nbconvert_to_html_with_a_plot(kernelspec: str, tmp_path: Path) -> None:
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 4])\nplt.show()"
    path = write(tmp_path / "a.ipynb", "print('text of a cell')", plot, "%pool_status")
    done = run("jupyter-nbconvert", "--execute", "--to", "html", path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "a.html").read_text()
    assert "text of a cell" in page
    (image,) = re.findall(r'<img[^>]*src="data:image/png;base64,([^"]*)"', page)
    assert len(image) > 5000
    assert re.search(r"<table>\s*<caption>Pool</caption>", page)


def test_nbconvert_fails_with_the_notebook(kernelspec: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "raise SystemError('broken')")
    done = run("jupyter-nbconvert", "--execute", "--to", "html", path)
    assert done.returncode != 0
    assert "SystemError: broken" in done.stderr
    assert not (tmp_path / "a.html").exists()


def test_the_kernel_of_the_notebook_is_used_and_not_another(kernelspec: str, tmp_path: Path) -> None:
    """Both programs read the name from the file; a name that is not there is an error, not some other kernel."""
    path = write(tmp_path / "a.ipynb", "1", kernel="vm-sandbox-of-yesterday")
    for words in (("jupyter-execute", path), ("jupyter-nbconvert", "--execute", "--to", "notebook", path)):
        done = run(*words)
        assert done.returncode != 0
        assert "No such kernel named vm-sandbox-of-yesterday" in done.stderr
    done = run("jupyter-execute", f"--kernel_name={kernelspec}", "--inplace", path)
    assert done.returncode == 0, done.stderr
    assert outputs(read(path)) == ["1"]
