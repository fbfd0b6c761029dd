"""Completion, inspection, history and is_complete in their finer points, as a notebook's editor uses them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.kernel.session import Session

DEFINITIONS = '''
import collections
def greet(name, loud=False):
    """Say hello."""
    return "hello " + name
class Greeter:
    word = "hello"
gravity = 9.81
table = {"first_key": 1, "second_key": 2}
'''


async def completed(session: Session, code: str) -> dict[str, str]:
    """What can stand at the end of the code: text to type."""
    cell = await session.ask("complete_request", {"code": code, "cursor_pos": len(code)})
    types = cell.reply["content"]["metadata"]["_jupyter_types_experimental"]
    return {each["text"]: each["type"] for each in types}


async def test_completions_of_the_users_own_names_have_types(session: Session) -> None:
    await session.run(DEFINITIONS)
    for code, text, kind in (
        ("gree", "greet", "function"),
        ("Gree", "Greeter", "class"),
        ("gravi", "gravity", "instance"),
        ("collec", "collections", "module"),
        ("lamb", "lambda", "keyword"),
        ("greet(lou", "loud=", "param"),
        ("%who_l", "%who_ls", "magic"),
    ):
        assert (await completed(session, code)).get(text) == kind, code
    assert {"first_key", "second_key"} <= (await completed(session, "table['")).keys()


async def test_a_path_is_completed_from_the_files_of_the_vm(session: Session) -> None:
    await session.run("open('a_file_of_mine.csv', 'w').close()")
    assert "a_file_of_mine.csv" in await completed(session, "open('a_file_of")


async def test_completion_counts_characters_not_bytes(session: Session) -> None:
    """The cursor of a client is in characters; one outside Unicode's basic plane is one."""
    await session.run("grüße = [1]")
    code = "'😀'; grüße.appe"
    content = (await session.ask("complete_request", {"code": code, "cursor_pos": len(code)})).reply["content"]
    assert content["matches"] == ["append"]
    assert (content["cursor_start"], content["cursor_end"]) == (len(code) - 4, len(code))


async def inspected(session: Session, code: str, detail_level: int) -> dict[str, Any]:
    request = {"code": code, "cursor_pos": len(code), "detail_level": detail_level}
    content: dict[str, Any] = (await session.ask("inspect_request", request)).reply["content"]
    content["plain"] = re.sub(r"\x1b\[[\d;]*m", "", content["data"].get("text/plain", ""))
    return content


async def test_the_second_level_of_inspection_adds_the_source(session: Session) -> None:
    await session.run(DEFINITIONS)
    brief, full = [await inspected(session, "greet", level) for level in (0, 1)]
    assert "greet(name, loud=False)" in brief["plain"]
    assert "Say hello." in brief["plain"]
    assert 'return "hello " + name' not in brief["plain"]
    assert 'return "hello " + name' in full["plain"]


async def test_inspection_finds_nothing_where_nothing_is(session: Session) -> None:
    content = await inspected(session, "no_such_name", 0)
    assert (content["status"], content["found"], content["data"]) == ("ok", False, {})


async def history(client: Session, **request: Any) -> list[Any]:
    content = {"output": False, "raw": True, **request}
    found: list[Any] = (await client.ask("history_request", content)).reply["content"]["history"]
    return found


async def test_history_by_tail_search_and_with_outputs(fresh_session: Session) -> None:
    for code in ("a = 1", "a + 1", "%who_ls", "a + 1"):
        await fresh_session.run(code)
    tail = await history(fresh_session, hist_access_type="tail", n=3)
    assert [line for _, _, line in tail] == ["a + 1", "%who_ls", "a + 1"]
    assert [number for _, number, _ in tail] == [2, 3, 4]
    found = await history(fresh_session, hist_access_type="search", pattern="a*", n=10)
    assert [line for _, _, line in found] == ["a = 1", "a + 1", "a + 1"]
    once = await history(fresh_session, hist_access_type="search", pattern="a +*", n=10, unique=True)
    assert [line for _, _, line in once] == ["a + 1"]
    both = await history(fresh_session, hist_access_type="range", session=0, start=2, stop=3, output=True)
    assert both == [[0, 2, ["a + 1", "2"]]]
    cooked = await history(fresh_session, hist_access_type="range", session=0, start=3, stop=4, raw=False)
    assert "run_line_magic('who_ls'" in cooked[0][2]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("for i in range(3):\n    print(i)", {"status": "incomplete", "indent": "    "}),
        ("if True:\n    if True:", {"status": "incomplete", "indent": "        "}),
        ("%%bash\necho", {"status": "incomplete", "indent": ""}),
        ("await thing()", {"status": "complete"}),
        ("'''text", {"status": "incomplete", "indent": ""}),
        ("raise = 2", {"status": "invalid"}),
    ],
)
async def test_is_complete_tells_the_indentation(session: Session, code: str, expected: dict[str, str]) -> None:
    assert (await session.ask("is_complete_request", {"code": code})).reply["content"] == expected
