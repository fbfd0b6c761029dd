"""What a guest that is lost may send, as data: by name, a function that sends it and what the host is to make of it.

The same attacks run against a kernel process and a ``Sandbox`` over a socketpair (``tests/hostile_guest/agent.py``) and
from inside a real VM (``tests/pool/hostile_agent.py``). So this needs nothing but the guest's Python and ``frames``.
To add one: write a function of an ``Attacker``, and name it in ``IGNORED`` or ``FATAL``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from guest_agent.frames import HEADER, MAX_PAYLOAD, MORE, Kind, encode_parts

MIB = 1 << 20
#: what a flood sends, in bytes
FLOOD = 24 * MIB
#: values that no field has, in every type that JSON knows
WRONG: list[Any] = [None, True, 0, -1, 10**4000, 1.5, "", "\ud800", "\0", "x" * 1000, [], [[]], {}, {"a": {}}]


class Attacker:
    """A guest's end of the stream. ``parent``: header of the cell that has named the attack."""

    def __init__(self, write: Callable[[bytes], None], parent: dict[str, Any]) -> None:
        self.write = write
        self.parent = parent

    def frame(self, kind: int, body: bytes = b"", flags: int = 0) -> None:
        """One frame, as it is."""
        self.write(HEADER.pack(len(body), kind, flags, 0) + body)

    def json(self, kind: Kind, fields: object) -> None:
        """An agent's message."""
        self.frame(kind, json.dumps(fields).encode())

    def parts(self, kind: Kind, parts: list[bytes]) -> None:
        """A message of byte strings, of any size."""
        for frame in encode_parts(kind, parts):
            self.write(b"".join(frame))

    def say(self, msg_type: object, content: object = None, **changes: Any) -> None:
        """A Jupyter message. Bytes go as they are, other values as JSON."""
        given = {"header": {"msg_id": "m", "msg_type": msg_type}, "parent": self.parent, "metadata": {}}
        given |= {"content": {} if content is None else content} | changes
        body = [_bytes(given[name]) for name in ("header", "parent", "metadata", "content")]
        self.parts(changes.get("kind", Kind.IOPUB), [changes.get("address", b"t"), *body, *changes.get("buffers", [])])

    def flood(self, data: bytes, size: int = FLOOD) -> None:
        """The same over and over."""
        many = data * (1 + 65536 // len(data))
        for _ in range(0, size, len(many)):
            self.write(many)


class Attack(NamedTuple):
    """``mib``: by how much the host's process may grow meanwhile."""

    run: Callable[[Attacker], None]
    mib: int = 128


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def _message(attacker: Attacker, kind: Kind, msg_type: str, content: object, parent: object = None) -> bytes:
    """A whole small message as bytes, for floods."""
    header, given = {"msg_id": "m", "msg_type": msg_type}, attacker.parent if parent is None else parent
    parts = [b"t", *(json.dumps(part).encode() for part in (header, given, {}, content))]
    return b"".join(b"".join(frame) for frame in encode_parts(kind, parts))


# ---- malformed


def bad_json(a: Attacker) -> None:
    """In each place of a message."""
    deep = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
    for bad in (
        b"",
        b"[]",
        b"{",
        b'"x"',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        deep,
        b"[" * 10_000,
        b'{"a":' + b"[" * 500,
    ):
        for place in ("header", "parent", "metadata", "content"):
            a.say("stream", **{place: bad})
    a.say("stream", b'{"a": ' + b"9" * 100_000 + b"}")
    a.say("stream", b'\xef\xbb\xbf{"name": "stdout", "text": "bom"}')
    a.say("stream", b'\xff\xfe{\0"\0a\0"\0:\01\0}\0')


def nested_just_so(a: Attacker) -> None:
    """Parsed by the host where its stack is short, and by others where it is not."""
    for depth in (150, 500, 900, 960):
        a.say("display_data", b'{"data": ' + b"[" * depth + b"]" * depth + b"}")


def wrong_fields(a: Attacker) -> None:
    """Each wrong value in each field of what the host reads."""
    for wrong in WRONG:
        a.say(wrong, header={"msg_id": "m", "msg_type": wrong})
        a.say("stream", header={"msg_id": wrong, "msg_type": "stream"})
        a.say("stream", {"name": "stdout", "text": "x"}, parent={"msg_id": wrong})
        a.say("status", {"execution_state": wrong})
        a.say("execute_reply", {"status": wrong, "execution_count": wrong}, kind=Kind.CONTROL)
        a.say("comm_open", {"comm_id": wrong, "target_name": wrong, "data": wrong}, parent={})
        for kind in (Kind.HELLO, Kind.READY, Kind.PONG, Kind.INTERRUPTED):
            a.json(kind, {"seq": wrong, "error": wrong, "protocol": wrong})


def twice_the_same_key(a: Attacker) -> None:
    msg_id = json.dumps(a.parent["msg_id"])
    a.say("status", b'{"execution_state": "idle", "execution_state": "dead"}')
    a.say("stream", b"{}", parent=b'{"msg_id": ' + msg_id.encode() + b', "msg_id": 5}')


def not_utf8(a: Attacker) -> None:
    a.say("stream", b'{"name": "stdout", "text": "\xff\xed\xa0\x80"}', parent={})
    a.say("stream", b'{"name": "stdout", "text": "\\ud800"}', parent={})
    a.say("stream", header=b'{"msg_id": "\xff", "msg_type": "\xff"}')


def bad_addresses(a: Attacker) -> None:
    for address in (b"", b"\0", b"<IDS|MSG>", b"t" * 100_000, b"\0\1\2\3\4", os.urandom(200)):
        a.say("stream", {"name": "stdout", "text": ""}, address=address, parent={})
        a.say("execute_reply", {"status": "ok"}, address=address, kind=Kind.SHELL, parent={"msg_id": "another's"})


# ---- out of place


def unknown_channels(a: Attacker) -> None:
    for msg_type in ("iopub_welcome", "shutdown_reply", "execute_reply", "input_request", "shutdown_request", "x"):
        for kind in (Kind.IOPUB, Kind.STDIN, Kind.CONTROL):
            a.say(msg_type, {"status": "ok", "prompt": "", "password": False, "restart": True}, kind=kind)


def nobodys_replies(a: Attacker) -> None:
    """To requests that do not exist, or another session's."""
    for parent in ({}, {"msg_id": "unknown"}, {"msg_id": "0_0_1"}, {"msg_id": "host-" + "0" * 32}):
        for kind in (Kind.SHELL, Kind.CONTROL, Kind.STDIN):
            a.say("execute_reply", {"status": "ok"}, parent=parent, kind=kind)
            a.say("kernel_info_reply", {"status": "ok"}, parent=parent, kind=kind)
            a.say("input_request", {"prompt": "password?", "password": True}, parent=parent, kind=kind)


def many_ids(a: Attacker) -> None:
    """Each message with a parent and an id of its own: whoever keeps a record of them runs out of memory."""
    for number in range(4_000):
        a.say("stream", {"name": "stdout", "text": ""}, parent={"msg_id": f"{number:0500}"})
        a.say("execute_reply", {}, parent={"msg_id": f"{number:0500}"}, kind=Kind.SHELL)


def questions(a: Attacker) -> None:
    """ZeroMQ keeps for a client what it does not read."""
    a.flood(_message(a, Kind.STDIN, "input_request", {"prompt": "x" * 20_000, "password": False}), 100 * MIB)


def confirmations(a: Attacker) -> None:
    """Of interrupts that nobody has made. Each one used to be answered, with thirty times its size."""
    a.flood(HEADER.pack(10, Kind.INTERRUPTED, 0, 0) + b'{"seq": 1}', 4 * MIB)


def answers(a: Attacker) -> None:
    """To host magics that nobody has called."""
    a.flood(HEADER.pack(0, Kind.FROZEN, 0, 0), 2 * MIB)
    a.flood(b"".join(b"".join(frame) for frame in encode_parts(Kind.FILES, [b'{"id": 1, "t": "data"}', b""])), 4 * MIB)
    a.flood(HEADER.pack(2, Kind.READY, 0, 0) + b"{}", 4 * MIB)


def comm_storm(a: Attacker) -> None:
    for number in range(2_000):
        a.say("comm_open", {"comm_id": f"{number}", "target_name": "x", "data": {}}, parent={})
        a.say("comm_msg", {"comm_id": f"{number}", "data": {"state": {}}})
        a.say("comm_close", {"comm_id": f"{number}"}, parent={})


def idle_too_early(a: Attacker) -> None:
    """And again, and for others; then busy when it is over."""
    for parent in (a.parent, a.parent, {}, {"msg_id": "unknown"}):
        for state in ("idle", "busy", "idle", "starting", "dead", "restarting"):
            a.say("status", {"execution_state": state}, parent=parent)


def updates(a: Attacker) -> None:
    """Of one thing that is shown thousands of times."""
    content = {"data": {"text/plain": "x"}, "metadata": {}, "transient": {"display_id": "d"}}
    for msg_type in ("display_data", "update_display_data"):
        message = _message(a, Kind.IOPUB, msg_type, content)
        for _ in range(5):
            a.write(message * 1000)


# ---- large


def one_text(a: Attacker) -> None:
    """Sixty megabytes, of which one character makes Python take four bytes for each."""
    a.say("stream", b'{"name": "stdout", "text": "' + b"x" * (60 * MIB) + "\U0001f600".encode() + b'"}', parent={})


def one_text_with_half_a_character(a: Attacker) -> None:
    """The same, with what has to be taken out of it."""
    text = b"x" * (60 * MIB) + "\U0001f600".encode() + b"\\ud800"
    a.say("stream", b'{"name": "stdout", "text": "' + text + b'"}', parent={})
    a.say("display_data", b'{"metadata": {}, "data": {"text/plain": "' + text + b'"}}', parent={})


def json_bombs(a: Attacker) -> None:
    """Three bytes of JSON become seventy of memory."""
    for unit in (b"{},", b'{"a":1},', b'"",'):
        a.say("display_data", b'{"data": [' + unit * (40 * MIB // len(unit)) + b"1]}", parent={})
    a.say("display_data", b'{"data": "' + b"x" * (65 * MIB) + b'"}', parent={})
    a.say("display_data", b'{"data": "' + b'\\"' * (16 * MIB), parent={})


def large_buffers(a: Attacker) -> None:
    for _ in range(2):
        a.say("comm_msg", {"comm_id": "x", "data": {}}, buffers=[bytes(150 * MIB)], parent={})


def small_buffers(a: Attacker) -> None:
    """Below what counts as large, and many of them; then none with anything in it."""
    for _ in range(8):
        a.say("comm_msg", {"comm_id": "x", "data": {}}, buffers=[bytes(60_000)] * 200, parent={})
    for _ in range(60):
        a.say("comm_msg", {"comm_id": "x", "data": {}}, buffers=[b""] * 4000, parent={})


def crumbs(a: Attacker) -> None:
    """A message in frames of two bytes, and of none, that makes no sense in the end."""
    crumb = HEADER.pack(2, Kind.IOPUB, MORE, 0) + b"\0\0" + HEADER.pack(0, Kind.IOPUB, MORE, 0)
    a.flood(crumb, 4 * MIB)
    a.frame(Kind.IOPUB, b"\0\0")


#: the cell goes on; what was sent is dropped, or shown as anybody's output is
IGNORED: dict[str, Attack] = {
    "bad_json": Attack(bad_json),
    "nested_just_so": Attack(nested_just_so),
    "wrong_fields": Attack(wrong_fields),
    "twice_the_same_key": Attack(twice_the_same_key),
    "not_utf8": Attack(not_utf8),
    "bad_addresses": Attack(bad_addresses),
    "unknown_channels": Attack(unknown_channels),
    "nobodys_replies": Attack(nobodys_replies),
    "many_ids": Attack(many_ids),
    "questions": Attack(questions, 48),
    "confirmations": Attack(confirmations, 64),
    "answers": Attack(answers),
    "comm_storm": Attack(comm_storm),
    "idle_too_early": Attack(idle_too_early),
    "updates": Attack(updates),
    "small_buffers": Attack(small_buffers, 256),
    "one_text": Attack(one_text, 768),
    "one_text_with_half_a_character": Attack(one_text_with_half_a_character, 1024),
    "json_bombs": Attack(json_bombs, 512),
    "large_buffers": Attack(large_buffers, 1024),
}


def _header(length: int, kind: int, flags: int = 0, zero: int = 0) -> Callable[[Attacker], None]:
    return lambda a: a.write(HEADER.pack(length, kind, flags, zero) + b"x" * 1000)


def _json(kind: Kind, body: bytes) -> Callable[[Attacker], None]:
    return lambda a: a.frame(kind, body)


def endless(a: Attacker) -> None:
    """A message that never ends, and another beside it."""
    while True:
        for kind in (Kind.IOPUB, Kind.SHELL):
            a.frame(kind, bytes(MAX_PAYLOAD), MORE)


def endless_json(a: Attacker) -> None:
    while True:
        a.frame(Kind.PONG, b" " * MAX_PAYLOAD, MORE)


def slow_loris(a: Attacker) -> None:
    """The beginning of a message, and nothing more."""
    a.write(HEADER.pack(1000, Kind.IOPUB, 0, 0) + b"x")
    time.sleep(120)


#: the session stays as it is until its user has had enough
ENDLESS: dict[str, Attack] = {"slow_loris": Attack(slow_loris)}
#: the session ends, with an error that says so
FATAL: dict[str, Attack] = {
    "four_gigabytes": Attack(_header(0xFFFFFFFF, Kind.IOPUB)),
    "one_byte_too_many": Attack(_header(MAX_PAYLOAD + 1, Kind.IOPUB)),
    "unknown_kind": Attack(_header(4, 99)),
    "kind_zero": Attack(_header(0, 0)),
    "what_the_host_says": Attack(_header(2, Kind.INTERRUPT)),
    "unknown_flags": Attack(_header(4, Kind.IOPUB, 2)),
    "reserved_bytes": Attack(_header(4, Kind.IOPUB, 0, 1)),
    "random": Attack(lambda a: a.write(b"\xff" + os.urandom(65536))),
    "parts_that_are_not_there": Attack(_json(Kind.IOPUB, b"\xff\xff\xff\xff")),
    "parts_that_do_not_add_up": Attack(_json(Kind.SHELL, b"\0\0\0\1\0\0\0\5abc")),
    "no_parts": Attack(_json(Kind.STDIN, b"")),
    "a_list": Attack(_json(Kind.KERNEL_DIED, b"[1]")),
    "nothing": Attack(_json(Kind.INTERRUPTED, b"")),
    "deep": Attack(_json(Kind.HELLO, b'{"a":' * 10_000)),
    "deep_and_whole": Attack(_json(Kind.READY, b'{"a":' * 200 + b"1" + b"}" * 200)),
    "infinity": Attack(_json(Kind.INTERRUPTED, b'{"seq": Infinity}')),
    "digits": Attack(_json(Kind.INTERRUPTED, b'{"seq": ' + b"9" * 100_000 + b"}")),
    "surrogates": Attack(_json(Kind.PONG, b'{"seq": "\xed\xa0\x80"}')),
    "crumbs": Attack(crumbs),
    "endless": Attack(endless, 640),
    "endless_json": Attack(endless_json),
    "death_in_numbers": Attack(lambda a: a.json(Kind.KERNEL_DIED, {"signal": 10**4000, "exit_code": -(10**4000)})),
    "death_in_words": Attack(lambda a: a.json(Kind.KERNEL_DIED, {"signal": "\x1b[2J", "out_of_memory": [1]})),
}
