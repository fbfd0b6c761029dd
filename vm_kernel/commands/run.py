"""``vm-kernel run``: execute notebooks headless and say where they ran and how long each stage took.

nbclient executes; this module adds a progress bar, writes the notebook also when a cell fails, and names notebook
and cell then. What it knows of the pool comes from warmup.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vm_kernel.errors import ConfigError, FilesystemError, VMKernelError

if TYPE_CHECKING:
    from nbclient import NotebookClient
    from nbformat import NotebookNode
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from vm_kernel.commands.run_files import Client
    from vm_kernel.commands.warmup import Pool, Stage


class NotebookError(VMKernelError):
    """A notebook's cell failed. The fault is the notebook's (or the VM's, if it died under it)."""


@dataclass(frozen=True)
class Files:
    """What goes into a notebook's VM before its first cell, and what comes out after its last."""

    input: Path | None
    collect: list[str]
    output: Path


@dataclass(frozen=True)
class Job:
    """One notebook: where it is read, and where it is written when it has run."""

    source: Path
    target: Path


@dataclass
class Run:
    """What happened to one notebook. Filled in while it runs."""

    job: Job
    notebook: NotebookNode
    pool: Pool | None
    stages: list[Stage] = field(default_factory=list)
    vm: dict[str, Any] | None = None
    cell_index: int = -1
    files: Files | None = None

    @property
    def place(self) -> str:
        """Notebook and cell, for messages: ``a.ipynb, cell 3 of 9``."""
        if self.cell_index < 0:
            return str(self.job.source)
        return f"{self.job.source}, cell {self.cell_index + 1} of {len(self.notebook.cells)}"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run`` to the command line."""
    parser = subparsers.add_parser(
        "run",
        help="execute notebooks in the kernel",
        description="Execute notebooks one after the other, each in a VM of its own. Stops at the first error. "
        "Executed notebooks are written even then.",
    )
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="write DIR/NOTEBOOK (default: NAME.executed.ipynb beside each notebook)",
    )
    parser.add_argument("--kernel", default="vm-sandbox", metavar="NAME", help="Jupyter kernel (default: %(default)s)")
    parser.add_argument("--timeout", type=_seconds, metavar="S", help="seconds for a cell (default: no limit)")
    parser.add_argument(
        "--input",
        type=Path,
        metavar="DIR",
        help="put the files below DIR, hidden ones left out, into the folder of the VM where code begins, before the "
        "first cell",
    )
    parser.add_argument(
        "--collect",
        action="append",
        default=[],
        metavar="PATTERN",
        help="copy files of the VM to --output-dir after the last cell, also when a cell has failed: a glob relative "
        "to where code begins, such as 'out/*.csv' or '**/*.png'; repeatable. With several notebooks each gets a "
        "folder of its own there",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute the notebooks. Raises NotebookError at the first cell that fails, ConfigError for wrong arguments."""
    from rich.console import Console

    from vm_kernel.commands import warmup

    console = Console(highlight=False, markup=False)
    jobs = plan(args.notebooks, args.output_dir)
    profile = warmup.profile_of(args.kernel)
    files = plan_files(args, jobs, profile is not None)
    pool = warmup.wait_for_warm(profile, console) if profile is not None else None
    for job in jobs:
        outcome = Run(job, read_notebook(job.source), pool, files=files.get(job))
        try:
            execute(outcome, args.kernel, args.timeout, console)
        finally:
            write_notebook(outcome)
        report(outcome, console)
        pool = replace(pool, stages=[]) if pool is not None else None
    return 0


def plan(notebooks: Sequence[Path], output_dir: Path | None) -> list[Job]:
    """Decide where each notebook is written. Raises ConfigError if one is missing or two would collide."""
    jobs = []
    for source in notebooks:
        if not source.is_file():
            raise ConfigError(f"There is no notebook {source}.", "Check the path.")
        beside = source.with_name(f"{source.stem}.executed.ipynb")
        jobs.append(Job(source, output_dir / source.name if output_dir else beside))
    targets = [job.target.resolve() for job in jobs]
    for job, target in zip(jobs, targets, strict=True):
        if targets.count(target) > 1:
            raise ConfigError(f"Two notebooks would be written to {job.target}.", "Run them one at a time.")
        if target == job.source.resolve():
            raise ConfigError(f"{job.source} would be overwritten by its result.", "Choose another --output-dir.")
    return jobs


def plan_files(args: argparse.Namespace, jobs: Sequence[Job], is_ours: bool) -> dict[Job, Files]:
    """What --input and --collect mean for each notebook. Raises ConfigError if they cannot be meant."""
    from vm_kernel.commands.run_files import check

    if args.input is None and not args.collect:
        return {}
    check(args.input, args.collect, args.output_dir, is_ours)
    return {
        job: Files(args.input, args.collect, job.target.parent if len(jobs) == 1 else job.target.with_suffix(""))
        for job in jobs
    }


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook of any version as version 4. Raises ConfigError if it is none."""
    import nbformat

    try:
        notebook: NotebookNode = nbformat.reads(path.read_text(), as_version=4)  # type: ignore[no-untyped-call]
    except Exception as error:  # nbformat has no common base class for what can be wrong with a file
        raise ConfigError(f"{path} is not a notebook: {error}", "Open it in JupyterLab to mend it.") from error
    return notebook


def write_notebook(outcome: Run) -> None:
    """Write the notebook as far as it has run; a reader never sees half a file. Raises ConfigError."""
    import nbformat

    target = outcome.job.target
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(outcome.notebook, partial)  # type: ignore[no-untyped-call]
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{target} cannot be written: {error}", "Choose another --output-dir.") from error


def execute(outcome: Run, kernel: str, timeout: int | None, console: Console) -> None:
    """Run every cell, outputs go into ``outcome.notebook``. Raises NotebookError that names notebook and cell."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    from vm_kernel.commands.run_files import Client
    from vm_kernel.commands.warmup import Stage

    quieten_logs()
    folder = str(outcome.job.source.resolve().parent)
    client = Client(outcome.notebook, kernel_name=kernel, timeout=timeout, resources={"metadata": {"path": folder}})
    client.files = outcome.files
    client.on_copied = lambda what, seconds: outcome.stages.append(Stage(what, seconds))
    with progress_bar(console) as progress:
        watch(client, outcome, progress, progress.add_task(outcome.job.source.name, total=len(outcome.notebook.cells)))
        try:
            client.execute(**client.start_options())
        except NoSuchKernel as error:
            raise ConfigError(f"Jupyter has no kernel {kernel!r}.", "Run `vm-kernel install`.") from error
        except CellExecutionError as error:
            raise NotebookError(f"{outcome.place}: {error.ename}: {error.evalue}", _written(outcome, client)) from error
        except CellTimeoutError as error:
            raise NotebookError(
                f"{outcome.place}: did not end within {timeout} s", _written(outcome, client)
            ) from error
        except DeadKernelError as error:
            raise NotebookError(f"{outcome.place}: the kernel died", _written(outcome, client)) from error
        except FilesystemError as error:
            raise NotebookError(f"{outcome.job.source}: {error.message}", error.hint) from error
        except Exception as error:
            # nbclient answers SIGINT and SIGTERM by taking its kernel away under the running cell
            if client.km is None and outcome.cell_index >= 0:
                raise KeyboardInterrupt from error
            raise NotebookError(f"{outcome.place}: {type(error).__name__}: {error}") from error


def quieten_logs() -> None:
    """Keep nbclient's and jupyter_client's own reports of what we report off the terminal."""
    import logging

    logging.getLogger("traitlets").setLevel(logging.CRITICAL)


def watch(client: NotebookClient, outcome: Run, progress: Progress, task: TaskID) -> None:
    """Hang our progress and clocks on nbclient's hooks."""
    from vm_kernel.commands.warmup import Stage, vm_of_session

    marks = {"begin": time.monotonic()}

    def ready(notebook: NotebookNode) -> None:
        marks["ready"] = time.monotonic()
        outcome.stages.append(Stage("kernel start", marks["ready"] - marks["begin"]))

    def cell_starts(cell: NotebookNode, cell_index: int) -> None:
        outcome.cell_index = cell_index
        progress.update(task, completed=cell_index)

    async def cell_executed(cell: NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        if "first" in marks:
            return
        now = time.monotonic()
        outcome.stages.append(Stage("first cell, with the wait for its VM", now - marks["ready"]))
        if outcome.pool is not None:
            outcome.vm = await vm_of_session(client.kc)
        if outcome.vm is not None:
            outcome.stages.append(Stage("of which: VM acquired in", outcome.vm["acquire_ms"] / 1000))
        marks["first"] = time.monotonic()

    def done(notebook: NotebookNode) -> None:
        progress.update(task, completed=len(notebook.cells))
        if "first" in marks:
            outcome.stages.append(Stage("the other cells and the shutdown", time.monotonic() - marks["first"]))

    client.on_notebook_start = ready
    client.on_cell_start = cell_starts
    client.on_cell_executed = cell_executed
    client.on_notebook_complete = done


def progress_bar(console: Console) -> Progress:
    """A bar that counts cells."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=console,
    )


def report(outcome: Run, console: Console) -> None:
    """Print where the notebook ran, how long each stage took, and where the result is."""
    from rich.table import Table

    from vm_kernel.commands.warmup import describe

    if outcome.vm is not None and outcome.pool is not None:
        facts = Table.grid(padding=(0, 2))
        for name, value in describe(outcome.vm, outcome.pool.status).items():
            facts.add_row(name, value)
        console.print(facts)
    stages = Table("stage", "seconds", "", title="How long each stage took", title_justify="left")
    stages.columns[1].justify = "right"
    for stage in [*(outcome.pool.stages if outcome.pool else []), *outcome.stages]:
        stages.add_row(stage.name, f"{stage.seconds:.3f}", stage.note)
    console.print(stages)
    console.print(f"Wrote {outcome.job.target}", soft_wrap=True)


def _written(outcome: Run, client: Client) -> str:
    left = f" Its files were not collected: {client.not_collected}" if client.not_collected else ""
    return f"See the outputs in {outcome.job.target}.{left}"


def _seconds(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value
