"""Jupyter messages as bytes: what is taken, what is refused, and what memory it costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jupyter_client.session import Session

from vm_kernel.guest.messages import DELIMITER, WireError, json_object, parse_guest
from vm_kernel.kernel import wire
from vm_kernel.kernel.requests import MAX_FINISHED, MAX_OPEN, Request, Requests
from vm_kernel.kernel.wire import Message, Signer, parse_client


def parts(header: Any = None, content: Any = None) -> list[bytes]:
    """A request, or one with something else in two of its places."""
    given = {"msg_id": "m1", "msg_type": "execute_request"} if header is None else header
    return [
        json.dumps(given).encode(),
        b"{}",
        b"{}",
        json.dumps({"code": "1"} if content is None else content).encode(),
    ]


def frames(signer: Signer, body: list[bytes]) -> list[bytes]:
    return [b"client", DELIMITER, signer.sign(body), *body]


@pytest.mark.parametrize("scheme", ["hmac-sha256", "hmac-sha512", "hmac-md5"])
def test_signatures_are_those_of_jupyter_client(scheme: str) -> None:
    theirs = Session(key=b"secret", signature_scheme=scheme)
    sent = theirs.serialize(theirs.msg("execute_request", {"code": "1"}))
    message = parse_client([b"client", *sent], Signer(b"secret", scheme), "shell")
    assert (message.msg_type, message.content, message.identities) == ("execute_request", {"code": "1"}, [b"client"])
    assert Signer(b"secret", scheme).sign(sent[2:]) == sent[1]


def test_buffers_are_kept_and_not_signed() -> None:
    signer = Signer(b"k")
    message = parse_client([*frames(signer, parts()), b"one", b""], signer, "shell")
    assert message.parts[4:] == [b"one", b""]


def test_without_a_key_nothing_is_signed_or_checked() -> None:
    signer = Signer(b"")
    assert signer.sign(parts()) == b""
    for _ in range(2):
        parse_client([b"client", DELIMITER, b"whatever", *parts()], signer, "shell")


def test_wrong_and_repeated_signatures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer(b"k")
    good = frames(signer, parts())
    for bad in (b"", b"0" * 64, good[2].upper(), good[2][:-1], b"\xff" * 64):
        with pytest.raises(WireError, match="wrong signature"):
            parse_client([*good[:2], bad, *good[3:]], signer, "shell")
    parse_client(good, signer, "shell")
    with pytest.raises(WireError, match="seen before"):
        parse_client(good, signer, "shell")
    monkeypatch.setattr(wire, "MAX_SIGNATURES", 10)
    for number in range(30):
        parse_client(frames(signer, parts({"msg_id": str(number), "msg_type": "execute_request"})), signer, "shell")
    assert len(signer._seen) <= 11


@pytest.mark.parametrize("scheme", ["sha256", "hmac-", "hmac-nosuch", "", "rsa-sha256"])
def test_an_unknown_scheme_is_an_error(scheme: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Signer(b"k", scheme)


@pytest.mark.parametrize(
    "body",
    [
        parts({}), parts([]), parts("x"), parts({"msg_type": "execute_request"}), parts({"msg_id": "1"}),
        parts({"msg_id": "", "msg_type": "execute_request"}),
        parts({"msg_id": "1" * 600, "msg_type": "execute_request"}),
        parts({"msg_id": 1, "msg_type": "execute_request"}), parts({"msg_id": "1", "msg_type": "input_reply"}),
        parts({"msg_id": "1", "msg_type": "debug_request"}), parts({"msg_id": "1", "msg_type": "stream"}),
        parts(None, []), parts(None, {}), parts(None, {"code": None}), parts(None, {"code": ["1"]}),
        parts()[:3], [b"", *parts()[1:]], [*parts()[:3], b"{\"code\": NaN}"], [*parts()[:3], b"\xff"],
        [*parts()[:3], b"[" * 100_000], [*parts()[:3], b"1" * 10_000], [parts()[0], b"[]", b"{}", parts()[3]],
    ],
)  # fmt: skip
def test_malformed_messages_of_clients_are_refused(body: list[bytes]) -> None:
    signer = Signer(b"k")
    with pytest.raises(WireError):
        parse_client(frames(signer, body), signer, "shell")


@pytest.mark.parametrize("raw", [[], [b""], [DELIMITER], [b"x", DELIMITER], [DELIMITER, b"", *parts()], [b"a"] * 20])
def test_frames_that_are_no_message_are_refused(raw: list[bytes]) -> None:
    with pytest.raises(WireError):
        parse_client(raw, Signer(b""), "shell")


@pytest.mark.parametrize("data", [b"NaN", b'{"a": Infinity}', b'{"a": -Infinity}', b"", b"{}x", b"null", b"\xff{}"])
def test_json_that_browsers_do_not_read_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        json_object(data)


def test_messages_of_the_guest_are_checked_and_mended() -> None:
    body = [
        b'{"msg_id": "g", "msg_type": "stream"}',
        b'{"msg_id": "m1"}',
        b"{}",
        b'{"text": "a\xed\xb3\xbfb"}',
        b"\xff",
    ]
    message = parse_guest([b"topic", *body])
    assert (message.address, message.msg_type, message.parent_id) == (b"topic", "stream", "m1")
    assert "�" in message.content["text"]
    message.parts[3].decode()
    assert message.parts[4] == b"\xff", "buffers are bytes"
    for bad in ([b"t"], [b"t", *body[:3]], [DELIMITER, *body], [b"t" * 600, *body], [b"t", b"[]", *body[1:]],
                [b"t", body[0], b'{"msg_id": 3}', *body[2:]], [b"t", *body[:2], b"3", body[3]]):  # fmt: skip
        with pytest.raises(WireError):
            parse_guest(bad)


def request(number: int, msg_type: str = "execute_request") -> Request:
    return Request("shell", Message([b"c"], {"msg_id": str(number), "msg_type": msg_type}, {}, parts()))


def test_memory_for_requests_is_bounded() -> None:
    requests = Requests()
    for number in range(MAX_OPEN + 10):
        requests.add(request(number))
    assert len(requests.open()) == MAX_OPEN
    assert requests.find("0") is None
    for each in requests.open():
        each.replied = True
        requests.settle(each)
    assert len(requests.open()) == MAX_OPEN, "the reply alone does not end a request: 'idle' does"
    for each in requests.open():
        each.idle = True
        requests.settle(each)
    assert requests.open() == []
    assert sum(requests.find(str(number)) is not None for number in range(MAX_OPEN + 10)) == MAX_FINISHED
    requests.add(request(-1, "comm_msg"))
    assert requests.open() == [], "comms have no reply"
    assert requests.find("-1") is not None
