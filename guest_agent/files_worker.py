"""Serves requests about files in the guest: the process that the agent forks for it, with the rights of the user.

One request at a time, in order; see file_link.py for what they say. ``files.py`` is the agent's side of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from guest_agent import tree_reader
from guest_agent.file_link import Cancelled, Link, Message, Remote, parse
from guest_agent.frames import Decoder, FrameError, Kind, encode_parts
from guest_agent.names import Limits, Patterns, TreeError, path_parts, reason_of
from guest_agent.tree_writer import TreeWriter
from guest_agent.worker_process import become_user, forget_the_agent

#: folders that a "made" message names, at the most
_MADE_AT_ONCE = 50
#: bytes of the VM's memory that files must not fill
_RESERVE = 32 * 1024 * 1024


def run(sock: socket.socket, as_user: bool) -> None:
    """The whole life of the worker, right after the fork. Does not return. ``as_user``: give up root first."""
    try:
        forget_the_agent(sock.fileno())
        if as_user:
            become_user()
        Worker(sock).serve()
    finally:
        os._exit(0)


class _SocketPipe:
    """Messages over the socket to the agent. Raises EOFError when the agent has gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder(frozenset({Kind.FILES}))
        self._received: list[Message] = []

    def send(self, parts: list[bytes]) -> None:
        """Waits while the agent has no room."""
        for frame in encode_parts(Kind.FILES, parts):
            self._sock.sendall(b"".join(frame))

    def receive(self) -> Message:
        """The next message."""
        while not self._received:
            data = self._sock.recv(256 * 1024)
            if not data:
                raise EOFError
            self._received += [parse(body) for _, body in self._decoder.feed(data)]
        return self._received.pop(0)

    def put_back(self, message: Message) -> None:
        """It comes again."""
        self._received.insert(0, message)


class Worker:
    """Requests as they come."""

    def __init__(self, sock: socket.socket) -> None:
        self._pipe = _SocketPipe(sock)

    def serve(self) -> None:
        """Until the agent goes."""
        with contextlib.suppress(EOFError, OSError, FrameError):
            while True:
                fields = self._pipe.receive().fields
                # what is left of a request that has ended has no "op"
                if type(fields.get("id")) is int and fields.get("op") in _OPERATIONS:
                    self._serve(Link(self._pipe, fields["id"]), fields)

    def _serve(self, link: Link, fields: dict[str, Any]) -> None:
        answer: dict[str, Any]
        try:
            answer = {"t": "done", **_OPERATIONS[fields["op"]](link, fields)}
        except (Cancelled, Remote):
            return
        except TreeError as error:
            answer = {"t": "error", "reason": error.reason, "path": error.path}
        except OSError as error:
            answer = {"t": "error", "reason": reason_of(error), "path": str(fields.get("path"))}
        with contextlib.suppress(Cancelled):
            link.send(answer)


def _put(link: Link, fields: dict[str, Any]) -> dict[str, Any]:
    with _anchor(fields["path"]) as (anchor, parts):
        writer = TreeWriter(
            anchor, parts, Limits(*fields["limits"]), Patterns(hidden=True), overwrite=fields["overwrite"]
        )

        def take(message: dict[str, Any], data: bytes) -> None:
            writer.take(message, data)
            if message["t"] == "begin":
                _check_room(writer.total, fields["path"])

        try:
            link.until_done(take)
            made = writer.commit()
        finally:
            writer.abort()
    root = "/" if fields["path"].startswith("/") else ""
    for start in range(0, len(made), _MADE_AT_ONCE):
        link.send({"t": "made", "paths": [root + path for path in made[start : start + _MADE_AT_ONCE]]})
    return {}


def _check_room(size: int, path: str) -> None:
    """A VM's files are in its memory: what does not fit there would cost the user's code its life."""
    with open("/proc/meminfo") as file:  # noqa: PTH123
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    if size > available - _RESERVE:
        raise TreeError(f"no room for {size} bytes: {max(0, available - _RESERVE)} bytes of memory can be had", path)


def _get(link: Link, fields: dict[str, Any]) -> dict[str, Any]:
    patterns = Patterns(fields["patterns"], fields["hidden"])
    with _folder(fields["path"]) as folder:
        for message in tree_reader.messages(folder, tree_reader.scan(folder, patterns, Limits(*fields["limits"]))):
            link.send(*message)
    return {}


def _read(link: Link, fields: dict[str, Any]) -> dict[str, Any]:
    with _anchor(fields["path"]) as (anchor, parts):
        if not parts:
            raise TreeError("a folder, not a file", fields["path"])
        with _below(anchor, parts[:-1], fields["path"]) as folder:
            found = tree_reader.single(folder, parts[-1], Limits(*fields["limits"]))
            for message in tree_reader.messages(folder, found):
                link.send(*message)
    return {}


def _stat(link: Link, fields: dict[str, Any]) -> dict[str, Any]:
    with _anchor(fields["path"]) as (anchor, parts), _below(anchor, parts[:-1], fields["path"]) as folder:
        return {"kind": tree_reader.kind_of(folder, parts[-1])} if parts else {"kind": "folder"}


def _list(link: Link, fields: dict[str, Any]) -> dict[str, Any]:
    with _folder(fields["path"]) as folder:
        for item in tree_reader.listing(folder, Limits(*fields["limits"])):
            link.send(item)
    return {}


def _remove(link: Link, fields: dict[str, Any]) -> dict[str, Any]:
    """Files, and folders that are empty. What is not there, or not to be removed, stays without a word."""
    removed = 0

    def one(message: dict[str, Any], _: bytes) -> None:
        nonlocal removed
        with contextlib.suppress(OSError, TreeError):
            _remove_one(message["path"])
            removed += 1

    link.until_done(one)
    return {"removed": removed}


def _remove_one(path: str) -> None:
    with _anchor(path) as (anchor, parts), _below(anchor, parts[:-1], path) as folder:
        if not parts:
            return
        try:
            os.unlink(parts[-1], dir_fd=folder)
        except (IsADirectoryError, PermissionError):
            os.rmdir(parts[-1], dir_fd=folder)


@contextmanager
def _anchor(path: str) -> Iterator[tuple[int, list[str]]]:
    """Where a path starts, as a descriptor, and its components. A relative one starts in the user's home."""
    absolute, parts = path_parts(path)
    anchor = os.open("/" if absolute else ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield anchor, parts
    finally:
        os.close(anchor)


@contextmanager
def _folder(path: str) -> Iterator[int]:
    with _anchor(path) as (anchor, parts), _below(anchor, parts, path) as folder:
        yield folder


@contextmanager
def _below(anchor: int, parts: list[str], path: str) -> Iterator[int]:
    try:
        folder = tree_reader.open_folder(anchor, parts)
    except OSError as error:
        raise TreeError(reason_of(error), path) from None
    try:
        yield folder
    finally:
        os.close(folder)


_OPERATIONS = {"put": _put, "get": _get, "read": _read, "stat": _stat, "list": _list, "remove": _remove}
