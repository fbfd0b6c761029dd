"""Whole messages: which of them carry outputs, and where."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vm_kernel.guest.messages import GuestMessage, WireError
from vm_kernel.kernel.gate import Gate

INFO = {"status": "ok", "banner": "of the host"}
EVIL = {"text/html": "<script>1</script>", "text/plain": "x"}


def gate(policy: str = "isolated") -> tuple[Gate, list[str]]:
    """A gate, and the comms that it has closed."""
    closed: list[str] = []
    made = Gate(closed.append, lambda: INFO)
    made.policy = policy
    return made, closed


def message(msg_type: str, content: dict[str, Any], raw: str = "") -> GuestMessage:
    text = raw or json.dumps(content)
    return GuestMessage(b"", msg_type, "cell", json.loads(text), [b"{}", b"{}", b"{}", text.encode(), b"buffer"])


def passed(msg_type: str, content: dict[str, Any], policy: str = "isolated") -> Any:
    """What clients get, from its bytes."""
    made, _ = gate(policy)
    shown = (
        made.replied(message(msg_type, content))
        if msg_type.endswith("_reply")
        else made.published(message(msg_type, content))
    )
    return None if shown is None else json.loads(shown.parts[3])


@pytest.mark.parametrize("msg_type", ["display_data", "update_display_data", "execute_result"])
def test_outputs_go_by_the_rules(msg_type: str) -> None:
    content = {"data": EVIL, "metadata": {"isolated": True}, "transient": {"display_id": "d", "x": 1}, "more": 1}
    shown = passed(msg_type, content | {"execution_count": 3})
    assert "sandbox" in shown["data"]["text/html"]
    assert shown["metadata"] == {}
    assert shown["transient"] == {"display_id": "d"}
    assert "more" not in shown
    assert passed(msg_type, content, "trusted") == content


def test_bytes_of_what_is_harmless_stay_as_they_are() -> None:
    made, _ = gate()
    given = message("stream", {}, '{"text":  "a", "name": "stdout"}')
    assert made.published(given) is given


def test_printed_text_is_of_one_of_two_streams() -> None:
    assert passed("stream", {"name": "text/html", "text": "x", "data": EVIL}) == {"name": "stdout", "text": "x"}


def test_pages_are_text_and_nothing_else_comes_with_a_reply() -> None:
    payload = [
        {"source": "page", "data": EVIL, "start": 0},
        {"source": "set_next_input", "text": "1 + 1", "replace": False},
        {"source": "edit_magic", "filename": "/etc/passwd"},
        {"source": "ask_exit"},
        7,
    ]
    content = {
        "status": "ok",
        "execution_count": 1,
        "payload": payload,
        "user_expressions": {"a": {"status": "ok", "data": EVIL}},
    }
    shown = passed("execute_reply", content | {"more": EVIL})
    assert [entry["source"] for entry in shown["payload"]] == ["page", "set_next_input", "ask_exit"]
    assert shown["payload"][0]["data"] == {"text/plain": "x"}
    assert "sandbox" in shown["user_expressions"]["a"]["data"]["text/html"]
    assert "more" not in shown


def test_other_replies_with_something_to_show() -> None:
    shown = passed("inspect_reply", {"status": "ok", "found": True, "data": EVIL, "metadata": {}})
    assert "sandbox" in shown["data"]["text/html"]
    shown = passed(
        "debug_reply", {"success": True, "command": "richInspectVariables", "body": {"data": EVIL, "metadata": {}}}
    )
    assert "sandbox" in shown["body"]["data"]["text/html"]
    assert passed("debug_reply", {"success": True, "body": {"variables": [1]}})["body"] == {"variables": [1]}
    assert passed("comm_info_reply", {"status": "ok", "comms": {"unknown": {"target_name": "x"}}})["comms"] == {}


@pytest.mark.parametrize("policy", ["isolated", "static", "trusted"])
def test_what_the_kernel_says_of_itself_is_the_hosts(policy: str) -> None:
    assert passed("kernel_info_reply", {"banner": "<b>", "help_links": [{"url": "javascript:1"}]}, policy) == INFO


def test_comms_that_nobody_hears_of_are_closed() -> None:
    content = {"comm_id": "c", "target_name": "other", "data": {}}
    for policy, closes in (("isolated", ["c"]), ("static", ["c"]), ("trusted", [])):
        made, closed = gate(policy)
        assert (made.published(message("comm_open", content)) is None) is bool(closes)
        assert closed == closes
    assert passed("comm_close", content) is None


def test_half_a_character_does_not_leave() -> None:
    made, _ = gate()
    for msg_type, raw in [
        ("stream", r'{"name": "stdout", "text": "a\ud800"}'),
        ("error", r'{"ename": "\uDFFF", "evalue": "\ud800", "traceback": ["\ud800"]}'),
        ("display_data", r'{"data": {"application/json": {"\ud800": ["\ud800"]}}, "metadata": {}}'),
        *(
            ("display_data", rf'{{"data": {{"{mime}": "<b>\ud800</b>", "text/plain": "\ud800"}}, "metadata": {{}}}}')
            for mime in ("text/html", "text/markdown", "image/svg+xml", "text/latex", "application/javascript")
        ),
    ]:
        shown = made.published(message(msg_type, {}, raw))
        assert shown is not None
        assert json.dumps(json.loads(shown.parts[3]), ensure_ascii=False).encode()
    smile = message("stream", {}, r'{"name": "stdout", "text": "\ud83d\ude00"}')
    assert made.published(smile) is smile


def test_numbers_that_json_cannot_have() -> None:
    made, _ = gate()
    with pytest.raises(WireError):
        made.published(message("display_data", {}, '{"data": {"application/json": 1e999, "x/y": 1}}'))
