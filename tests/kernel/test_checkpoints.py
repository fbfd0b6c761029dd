"""%checkpoint and %rollback in a session: the whole live state, saved and brought back in the same notebook."""

from __future__ import annotations

from tests.kernel.session import Session


async def test_a_rollback_brings_back_variables_files_and_processes(session: Session) -> None:
    await session.run(
        "import subprocess, random, pathlib\n"
        "x = [1]\npathlib.Path('f.txt').write_text('before')\n"
        "child = subprocess.Popen(['sleep', '1000'])\nrandom.seed(5)"
    )
    saved = await session.run("%checkpoint before")
    assert saved.status == "ok", saved.reply
    assert "Checkpoint 'before'" in saved.of("display_data")[0]["data"]["text/plain"]
    drawn = (await session.run("random.random()")).value
    await session.run("x.append(2); pathlib.Path('f.txt').write_text('after'); child.kill(); child.wait()")

    back = await session.run("%rollback before")
    assert back.status == "ok", back.reply
    assert (await session.run("x, pathlib.Path('f.txt').read_text(), child.poll()")).value == "([1], 'before', None)"
    assert (await session.run("random.random()")).value == drawn, "the state of random is a variable, too"
