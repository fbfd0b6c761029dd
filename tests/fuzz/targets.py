"""What is fuzzed: each function takes any bytes, hands them to host code that reads a guest's, and checks what it did.

A target raises AssertionError, or whatever the host code ought not to raise. Used by ``python -m tests.fuzz`` and by
the property-based tests. ``PLANTED`` has a bug for each: a target that cannot find it is worth nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guest_agent import frames, tree_receiver
from guest_agent.file_link import Cancelled, Link, Message, Remote, parse
from guest_agent.frames import Decoder, FrameError, decode_json, pack_parts, unpack_parts
from guest_agent.names import Limits, Patterns, TreeError
from guest_agent.tree_receiver import Incoming, MemoryReceiver, Receiver
from guest_agent.tree_writer import TreeWriter
from tests.outputs.reader import check_page, check_picture
from vm_kernel.errors import CloneError, GuestProtocolError, VMDied
from vm_kernel.guest import files as guest_files
from vm_kernel.guest import handshake as guest_handshake
from vm_kernel.guest import messages as guest_messages
from vm_kernel.guest.channel import FROM_GUEST
from vm_kernel.guest.ends import python_ended
from vm_kernel.guest.messages import GuestMessage, WireError, json_object, parse_guest
from vm_kernel.kernel.gate import Gate
from vm_kernel.kernel.outputs import html as outputs_html
from vm_kernel.kernel.wire import FROM_GUEST_IOPUB
from vm_kernel.sandbox.result import Collector

#: a limit that inputs of some kilobytes reach
MAX_MESSAGE = 8192
LIMITS = Limits(max_bytes=4096, max_entries=16)


def decoded(data: bytes, chunks: list[int]) -> tuple[list[tuple[int, bytes]], str]:
    """The messages in ``data``, and the error at its end, when it arrives in chunks of these sizes, over and over."""
    decoder = Decoder(FROM_GUEST, MAX_MESSAGE)
    found: list[tuple[int, bytes]] = []
    at = turn = 0
    try:
        while at < len(data):
            size = chunks[turn % len(chunks)]
            for kind, body in decoder.feed(data[at : at + size]):
                assert len(body) <= MAX_MESSAGE
                found.append((int(kind), bytes(body)))
            at, turn = at + size, turn + 1
    except FrameError as error:
        return found, str(error)
    return found, "" if decoder.idle else "unfinished"


def frames_target(data: bytes) -> None:
    """Any bytes give the same messages, or the same error, in whatever pieces they arrive."""
    chunks = [1 + byte % 64 for byte in data[:4]] or [1]
    assert decoded(data, [len(data) or 1]) == decoded(data, chunks)
    try:
        parts = unpack_parts(data)
    except FrameError:
        return
    assert pack_parts(parts) == data


def messages_target(data: bytes) -> None:
    """A message that is taken is JSON for everybody, and no deeper than others can bear."""
    try:
        fields = decode_json(data)
    except FrameError:
        pass
    else:
        check_json(fields)
        ended = python_ended(fields, None)
        assert isinstance(ended, VMDied)
        check_words(ended.message)
    parts = data.split(b"\0")
    try:
        message = parse_guest([parts[0], *parts[1:]])
    except WireError:
        return
    for part in message.parts[:4]:
        check_json(json.loads(part.decode()))
    assert len(message.msg_type) <= guest_messages.MAX_ID_LENGTH
    collector = Collector(1000)
    for msg_type in ("stream", "error", "display_data", "update_display_data", "clear_output"):
        collector.add(msg_type, message.content, 10)
    assert all(isinstance(output.text, str) for output in collector.outputs)


def check_json(value: object) -> None:
    """No numbers that are none, and not deep."""
    depth, level = 0, [value]
    while level := [child for item in level if isinstance(item, list | dict) for child in _children(item)]:
        depth += 1
        assert all(child == child for child in level if isinstance(child, float))
    assert depth <= frames.MAX_DEPTH


def _children(item: list[Any] | dict[str, Any]) -> list[Any]:
    return [*item.values()] if isinstance(item, dict) else item


def check_words(text: str) -> None:
    """Fit to be shown in a terminal."""
    assert len(text) < 1000
    assert text.isprintable()


def handshake_target(data: bytes) -> None:
    """Whatever a clone answers is an answer or one of our errors, in words that fit into a log."""
    for check in (guest_handshake.check_hello, guest_handshake.check_ready):
        try:
            check(decode_json(data))
        except (CloneError, GuestProtocolError) as error:
            check_words(error.message)
        except FrameError:
            pass
    if data[:1] != b"\0":  # no frame
        return
    greet = _GREETINGS[len(data) % len(_GREETINGS)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data[:60_000])
        theirs.shutdown(socket.SHUT_WR)
        try:
            greet(ours)
        except (CloneError, GuestProtocolError) as error:
            check_words(error.message)


_GREETINGS: list[Callable[[socket.socket], object]] = [
    lambda sock: guest_handshake.claim(sock, "fuzz", 10.0),
    lambda sock: guest_handshake.reclaim(sock, "fuzz", same_session=True, timeout_s=10.0),
    lambda sock: guest_handshake.check_health(sock, 10.0),
]


class _Answers:
    """A pipe from which these messages come, and then nothing."""

    def __init__(self, bodies: list[bytes]) -> None:
        self._bodies = bodies

    def send(self, parts: list[bytes]) -> None:
        pack_parts(parts)

    def receive(self) -> Message:
        if not self._bodies:
            raise Cancelled
        return parse(self._bodies.pop(0))

    def put_back(self, message: Message) -> None:
        raise FrameError("out of place")


class _GuardedWriter(TreeWriter):
    """Finds a name that leads out before anything is made there: a fuzzer must not write all over its host."""

    def _begin_file(self, parts: list[str], size: int, fields: dict[str, Any]) -> Incoming:
        _check_stays(parts)
        return super()._begin_file(parts, size, fields)

    def _make_folder(self, parts: list[str], mode: int) -> None:
        _check_stays(parts)
        super()._make_folder(parts, mode)


def _check_stays(parts: list[str]) -> None:
    assert parts
    assert all(part not in ("", ".", "..") and "/" not in part for part in parts), parts


def files_target(data: bytes) -> None:
    """A copy of files writes in its own folder, as much as is allowed, or fails with an error of ours.

    ``data``: messages as lines, each a JSON header and, behind a tab, data.
    """
    bodies = [pack_parts([*line.partition(b"\t")[::2]]) for line in data.split(b"\n")]
    outside = Path(tempfile.mkdtemp(prefix="vmk-fuzz-"))
    try:
        anchor = os.open(outside, os.O_RDONLY | os.O_DIRECTORY)
        try:
            writer = _GuardedWriter(anchor, ["target"], LIMITS, Patterns(["**", "*.*.*"], hidden=True))
            try:
                if _receive(bodies, writer):
                    writer.commit()
            except (TreeError, OSError):
                pass
            finally:
                writer.abort()
        finally:
            os.close(anchor)
        assert {path.name for path in outside.iterdir()} <= {"target"}
        written = [path for path in outside.rglob("*") if path.is_file()]
        assert all(path.stat().st_mode & 0o022 == 0 for path in written)
        assert sum(path.stat().st_size for path in written) <= LIMITS.max_bytes
    finally:
        shutil.rmtree(outside)
    memory = MemoryReceiver(LIMITS)
    _receive(bodies, memory)
    assert len(memory.content) <= LIMITS.max_bytes
    for body in bodies:
        try:
            entry = guest_files.parse_entry(parse(body).fields)
        except FrameError:
            continue
        assert "/" not in entry.name
        assert entry.name not in ("", ".", "..")


def _receive(bodies: list[bytes], receiver: Receiver) -> bool:
    """Whether all of it was there."""
    try:
        Link(_Answers([*bodies]), 1).until_done(receiver.take)
        receiver.check_complete()
    except (Remote, TreeError, OSError, FrameError, Cancelled):
        return False
    return True


def outputs_target(data: bytes) -> None:
    """Whatever a guest publishes, what clients get of it can do nothing in a page.

    ``data``: messages as lines, each a message type and, behind a tab, the content as JSON; or HTML, as it is.
    """
    gate = Gate(lambda comm_id: None, dict)
    for line in data.split(b"\n"):
        name, tab, text = line.partition(b"\t")
        if not tab:
            name, text = b"display_data", json.dumps({"data": {"text/html": line.decode(errors="replace")}}).encode()
        if name.decode(errors="replace") not in FROM_GUEST_IOPUB | _REPLIES:
            continue
        try:
            content = json_object(text)
            message = GuestMessage(b"", name.decode(errors="replace"), "cell", content, [b"{}", b"{}", b"{}", text])
            passed = [gate.published(message)] if not message.msg_type.endswith("_reply") else [gate.replied(message)]
        except WireError:
            continue
        for shown in filter(None, passed):
            check_shown(json.loads(shown.parts[3]))


#: replies with something in them that is shown
_REPLIES = {"execute_reply", "inspect_reply", "debug_reply", "comm_info_reply", "kernel_info_reply"}


#: shown as a tree of texts; what a widget's view makes of its own messages; of these two the parts below
_LEFT_ALONE = ("application/json", "content", "state", "body")


def check_shown(content: Any) -> None:
    """Everything in it that a front end would render as more than text."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key == "text/html" or (key == "value" and content.get("_model_name") in ("HTMLModel", "HTMLMathModel")):
            check_page(value)
        elif key == "image/svg+xml":
            check_picture(value)
        elif key == "data" and isinstance(value, dict):
            assert not {"text/markdown", "application/javascript", "text/javascript"} & value.keys()
    if isinstance(content, dict):
        children = [value for key, value in content.items() if key not in _LEFT_ALONE]
        state = content.get("state")
        if isinstance(state, dict):  # of a widget, whose view knows these
            children += [{key: state[key] for key in ("_model_name", "value") if key in state}, state.get("outputs")]
        body = content.get("body")
        children.append(body.get("data") if isinstance(body, dict) else None)
    else:
        children = content if isinstance(content, list) else []
    for child in children:
        check_shown(child)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": frames_target,
    "messages": messages_target,
    "handshake": handshake_target,
    "files": files_target,
    "outputs": outputs_target,
}


# ---- bugs to be found


def _forgetful_decoder() -> None:
    """Loses the beginning of a header that ends behind its kind."""
    feed = Decoder.feed

    def forget(self: Decoder, data: bytes) -> Any:
        if len(self._header) == 5:
            self._header = b""
        return feed(self, data)

    Decoder.feed = forget  # type: ignore[method-assign]


def _tolerant_json() -> None:
    """Takes NaN, as Python does by itself."""
    guest_messages._decoder = json.JSONDecoder()
    frames._decoder = json.JSONDecoder()


def _first_word() -> None:
    """Believes that an error has a text."""
    guest_handshake.printable = lambda text: text.split()[0]


def _open_folder() -> None:
    """Lets names lead out of their folder, as far as ``_GuardedWriter`` lets them."""
    tree_receiver.tree_parts = lambda name: str(name).split("/")


def _handlers() -> None:
    """Takes every attribute for harmless that begins with an o."""
    kept = outputs_html._kept

    def keep(tag: str, name: str, value: str) -> str | None:
        return value if name[:1] == "o" else kept(tag, name, value)

    outputs_html._kept = keep


PLANTED: dict[str, Callable[[], None]] = {
    "frames": _forgetful_decoder,
    "messages": _tolerant_json,
    "handshake": _first_word,
    "files": _open_folder,
    "outputs": _handlers,
}
