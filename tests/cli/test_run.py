"""``vm-kernel run``: notebooks executed headless, in VMs."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import outputs, vm_kernel, write_notebook


def test_it_executes_in_a_vm_and_says_where_and_how_long(kernelspec: str, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "import socket", "print(socket.gethostname())", "%vm_info")
    before = notebook.read_text()
    done = vm_kernel("run", "--output-dir", tmp_path / "out", notebook)
    assert done.returncode == 0, done.stderr
    _, node, info = outputs(tmp_path / "out/a.ipynb")
    assert node.strip() in info
    assert node.strip() in done.stdout
    for word in ("accelerator", "transport", "golden snapshot", "kernel start", "VM acquired in"):
        assert word in done.stdout
    assert notebook.read_text() == before


def test_without_an_output_folder_the_result_is_beside_the_notebook(kernelspec: str, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "6 * 7")
    assert vm_kernel("run", notebook).returncode == 0
    assert outputs(tmp_path / "a.executed.ipynb") == ["42"]


def test_it_stops_at_the_first_error_and_names_notebook_and_cell(kernelspec: str, tmp_path: Path) -> None:
    broken = write_notebook(tmp_path / "broken.ipynb", "print('before')", "1 / 0", "print('after')")
    later = write_notebook(tmp_path / "later.ipynb", "print('never')")
    done = vm_kernel("run", "--output-dir", tmp_path / "out", broken, later)
    assert done.returncode == 1
    assert f"{broken}, cell 2 of 3: ZeroDivisionError: division by zero" in done.stderr
    assert "Traceback" not in done.stderr
    assert outputs(tmp_path / "out/broken.ipynb") == ["before\n", "division by zero", ""]
    assert not (tmp_path / "out/later.ipynb").exists()


def test_each_notebook_has_a_vm_of_its_own(kernelspec: str, tmp_path: Path) -> None:
    one = write_notebook(tmp_path / "one.ipynb", "open('left.txt', 'w').write('here')")
    two = write_notebook(tmp_path / "two.ipynb", "import os; print(os.path.exists('left.txt'))")
    done = vm_kernel("run", "--output-dir", tmp_path / "out", one, two)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "out/two.ipynb") == ["False\n"]


def test_a_cell_that_takes_too_long_is_named(kernelspec: str, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "slow.ipynb", "x = 1", "import time; time.sleep(60)")
    done = vm_kernel("run", "--timeout", "2", notebook)
    assert done.returncode == 1
    assert f"{notebook}, cell 2 of 2: did not end within 2 s" in done.stderr


def test_a_kernel_that_dies_is_an_error_at_its_cell(kernelspec: str, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "dies.ipynb", "print('hello')", "import os; os.kill(os.getpid(), 9)")
    done = vm_kernel("run", "--output-dir", tmp_path / "out", notebook)
    assert done.returncode == 1
    assert f"{notebook}, cell 2 of 2: " in done.stderr
    assert outputs(tmp_path / "out/dies.ipynb")[0] == "hello\n"


def test_what_cannot_be_run_is_said_before_anything_runs(kernelspec: str, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.ipynb"
    garbage.write_text("this is no notebook")
    (tmp_path / "b").mkdir()
    twins = [write_notebook(tmp_path / "a.ipynb", "1"), write_notebook(tmp_path / "b/a.ipynb", "1")]
    for words, message in (
        ((tmp_path / "none.ipynb",), f"There is no notebook {tmp_path / 'none.ipynb'}"),
        ((garbage,), f"{garbage} is not a notebook"),
        (("--output-dir", tmp_path / "out", *twins), "Two notebooks would be written to"),
        (("--output-dir", tmp_path, twins[0]), "would be overwritten"),
        (("--kernel", "no-such-kernel", twins[0]), "Jupyter has no kernel 'no-such-kernel'"),
    ):
        done = vm_kernel("run", *words)
        assert done.returncode == 1, words
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_files_go_in_before_the_first_cell_and_come_out_after_the_last(kernelspec: str, tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/numbers.txt").write_text("1 2 3")
    (tmp_path / "in/sub/more.txt").write_text("4")
    (tmp_path / "in/.env").write_text("secret")
    code = (
        "import os; total = sum(map(int, open('numbers.txt').read().split() + [open('sub/more.txt').read()]))\n"
        "os.makedirs('out/deep'); open('out/total.txt', 'w').write(str(total))\n"
        "open('out/deep/x.csv', 'w').write('x'); open('out/other', 'w').write('o'); print(os.path.exists('.env'))"
    )
    notebook = write_notebook(tmp_path / "a.ipynb", "# %vm_put is off here", code)
    words = ("--input", tmp_path / "in", "--collect", "out/*.txt", "--collect", "**/*.csv")
    done = vm_kernel("run", "--output-dir", tmp_path / "out", *words, notebook)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "out/a.ipynb")[1] == "False\n"
    assert (tmp_path / "out/out/total.txt").read_text() == "10"
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["a.ipynb", "out/deep/x.csv", "out/total.txt"]
    for stage in ("files into the VM", "files out of the VM"):
        assert stage in done.stdout


def test_files_are_collected_when_a_cell_fails_or_takes_too_long(kernelspec: str, tmp_path: Path) -> None:
    for name, end in (("broken", "1 / 0"), ("slow", "import time; time.sleep(60)")):
        notebook = write_notebook(tmp_path / f"{name}.ipynb", "open('log', 'w').write('so far')", end, "1")
        done = vm_kernel("run", "--output-dir", tmp_path / name, "--collect", "log", "--timeout", "5", notebook)
        assert done.returncode == 1
        assert f"{notebook}, cell 2 of 3" in done.stderr
        assert (tmp_path / name / "log").read_text() == "so far"
        assert "not collected" not in done.stderr


def test_each_notebook_collects_into_a_folder_of_its_own(kernelspec: str, tmp_path: Path) -> None:
    notebooks = [write_notebook(tmp_path / f"{n}.ipynb", f"open('log', 'w').write('{n}')") for n in ("a", "b")]
    done = vm_kernel("run", "--output-dir", tmp_path / "out", "--collect", "log", *notebooks)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / "out" / n / "log").read_text() for n in ("a", "b")] == ["a", "b"]


def test_what_cannot_be_copied_is_a_clear_error(kernelspec: str, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "1")
    (tmp_path / "in").mkdir()
    with (tmp_path / "in/huge").open("wb") as file:
        file.truncate(1 << 30)
    out = ("--output-dir", tmp_path / "out")
    for words, message in (
        (("--input", tmp_path / "none"), f"There is no folder {tmp_path / 'none'}"),
        (("--collect", "*"), "Add --output-dir"),
        ((*out, "--collect", "../*"), "a path with '..' in it"),
        ((*out, "--collect", "/etc/*"), "must be relative"),
        ((*out, "--input", tmp_path / "in"), "no room for 1073741824 bytes"),
    ):
        done = vm_kernel("run", *words, notebook)
        assert done.returncode == 1, words
        assert message in done.stderr
        assert "Traceback" not in done.stderr
