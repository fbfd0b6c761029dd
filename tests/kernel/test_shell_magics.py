"""Top-level await, IPython's magics and shell escapes, child processes: they run in the VM and their output arrives."""

from __future__ import annotations

from tests.kernel.session import Session


async def test_top_level_await(session: Session) -> None:
    cell = await session.run(
        "import asyncio\n"
        "async def twice(x):\n    await asyncio.sleep(0.01)\n    print('at', x)\n    return 2 * x\n"
        "[await twice(1), *await asyncio.gather(twice(2), twice(3))]"
    )
    assert cell.value == "[2, 4, 6]"
    assert cell.stream() == "at 1\nat 2\nat 3\n"
    again = await session.run("async with asyncio.timeout(30):\n    result = await twice(4)\nresult")
    assert again.value == "8"


async def test_a_task_lives_on_between_cells(session: Session) -> None:
    await session.run("import asyncio\nticks = []\nasync def tick():\n    while True:\n        ticks.append(1)\n"
                      "        await asyncio.sleep(0.01)\ntask = asyncio.create_task(tick())")  # fmt: skip
    cell = await session.run("before = len(ticks)\nwhile len(ticks) < before + 3: await asyncio.sleep(0.01)\n'ticks'")
    assert cell.value == "'ticks'"
    assert (await session.run("task.cancel()")).value == "True"


async def test_bash_cell(session: Session) -> None:
    cell = await session.run("%%bash\necho out\necho err >&2\ncd /tmp && pwd\nwhoami")
    assert cell.stream("stdout") == "out\n/tmp\nsandbox\n"
    assert cell.stream("stderr") == "err\n"
    failed = await session.run("%%bash\nexit 3")
    assert failed.reply["content"]["ename"] == "CalledProcessError"


async def test_shell_escapes(session: Session) -> None:
    cell = await session.run("word = 'a b'\n!echo \"$word\"; echo {word.upper()}; exit 4")
    assert cell.stream().splitlines() == ["a b", "A B"]
    assert (await session.run("_exit_code")).value == "4"
    assert (await session.run("lines = !printf '1\\n2\\n'\nlines.n")).value == r"'1\n2'"


async def test_children_print_where_python_prints(session: Session) -> None:
    """What a process writes to its descriptor, without Python's knowledge, is shown as well."""
    msg_id = session.client.execute("import os, subprocess\nos.system('echo one')\nsubprocess.run(['echo', 'two']);")
    await session.finish(msg_id)
    await session.until_output(msg_id, "two")
    assert session.printed(msg_id).split() == ["one", "two"]


async def test_timeit_and_time(session: Session) -> None:
    cell = await session.run("%timeit -n 10 -r 2 sum(range(100))")
    assert "(mean ± std. dev. of 2 runs, 10 loops each)" in cell.stream()
    timed = await session.run("%%time\nprint('x')\n41 + 1")
    assert "Wall time:" in timed.stream()
    assert timed.value == "42"


async def test_run_of_a_file(session: Session) -> None:
    written = await session.run("%%writefile script.py\nimport sys\nprint(__name__, sys.argv[1:])\nresult = 6 * 7")
    assert "Writing script.py" in written.stream()
    cell = await session.run("%run script.py a 'b c'\nresult")
    assert cell.stream() == "__main__ ['a', 'b c']\n"
    assert cell.value == "42"


async def test_capture_and_the_pager(session: Session) -> None:
    await session.run("%%capture kept\nprint('unseen')")
    assert (await session.run("kept.stdout")).value == r"'unseen\n'"
    cell = await session.run("print?")
    page = cell.reply["content"]["payload"][0]
    assert page["source"] == "page"
    assert "Prints the values" in page["data"]["text/plain"]


async def test_a_next_cell_is_proposed_by_load(session: Session) -> None:
    await session.run("open('snippet.py', 'w').write('x = 1\\n')")
    payload = (await session.run("%load snippet.py")).reply["content"]["payload"][0]
    assert (payload["source"], payload["replace"]) == ("set_next_input", True)
    assert payload["text"].endswith("x = 1\n")
