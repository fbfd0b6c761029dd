"""The guest's end of the egress proxy: a process that the agent forks for it, with the rights of the user.

It listens on the loopback interface, reads the head of each request and asks the host for a connection; from then on it
passes bytes. ``proxy.py`` is the agent's side of it, proxy_link.py says what travels.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

from guest_agent.frames import Decoder, FrameError, Kind, encode_parts, unpack_parts
from guest_agent.outgoing import Outgoing
from guest_agent.proxy_http import BadRequest, Target, answer, parse_head, split_head
from guest_agent.proxy_link import ALL, Op, Tunnel, pack, unpack
from guest_agent.worker_process import become_user, forget_the_agent

#: clients at the same time; more wait in the listener's backlog. The host has a limit of its own, and says so
MAX_CLIENTS = 256
#: connections that one worker may number
MAX_NUMBER = 1 << 20
#: seconds for the head of a request, and for the host's answer
HEAD_S = 60.0
ANSWER_S = 60.0
#: seconds for a client to take an answer of ours
DRAIN_S = 10.0
_LOOK_S = 5.0


def run(sock: socket.socket, listener: socket.socket, first: int, as_user: bool) -> None:
    """The whole life of the worker, right after the fork. Does not return. ``first``: numbers begin behind it."""
    try:
        forget_the_agent(sock.fileno(), listener.fileno())
        if as_user:
            become_user()
        with suppress(EOFError, OSError, FrameError):
            Worker(sock, listener, first).serve()
    finally:
        os._exit(0)


class _Client(Tunnel):
    """A program in the guest that has connected. ``target`` is None until its request is there."""

    def __init__(self, number: int, worker: Worker, sock: socket.socket) -> None:
        super().__init__(number, worker.send)
        self.sock = sock
        self.head = bytearray()
        self.target: Target | None = None
        self.opened = False
        #: bytes that go to the client ahead of the server's: our own answer
        self.said = b""
        self.due = time.monotonic() + HEAD_S
        self.ending = False

    @property
    def events(self) -> int:
        """What to wait for."""
        if self.said:
            return selectors.EVENT_WRITE
        if self.target is None or self.ending:
            return selectors.EVENT_READ
        if not self.opened:
            return 0
        return (selectors.EVENT_READ if self.wants_read else 0) | (selectors.EVENT_WRITE if self.wants_write else 0)


class Worker:
    """A loop over the agent's socket, the listener and the clients."""

    def __init__(self, agent: socket.socket, listener: socket.socket, first: int) -> None:
        self._agent = agent
        self._listener = listener
        self._first = first
        self._next = 0
        self._clients: dict[int, _Client] = {}
        self._decoder = Decoder(frozenset({Kind.PROXY}))
        self._outgoing = Outgoing()
        self._selector = selectors.DefaultSelector()
        for sock in (agent, listener):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def send(self, parts: list[bytes]) -> None:
        """A message for the host. What a client sends is bounded by its window."""
        self._outgoing.add(encode_parts(Kind.PROXY, parts), False)

    def serve(self) -> None:
        """Until the agent goes. Raises EOFError, FrameError."""
        look = time.monotonic()
        while True:
            self._outgoing.write(self._agent.fileno())
            self._watch()
            for key, events in self._selector.select(_LOOK_S if self._clients else None):
                if key.fileobj is self._agent:
                    self._from_agent(events)
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.data.number in self._clients:
                    self._ready(key.data, events)
            if time.monotonic() >= look:
                look = time.monotonic() + _LOOK_S
                self._end_overdue(look - _LOOK_S)

    def _watch(self) -> None:
        writing = selectors.EVENT_WRITE if self._outgoing.bytes else 0
        self._set(self._agent, selectors.EVENT_READ | writing, None)
        self._set(self._listener, selectors.EVENT_READ if len(self._clients) < MAX_CLIENTS else 0, None)
        for client in self._clients.values():
            if client.sock is not None:
                self._set(client.sock, client.events, client)

    def _set(self, sock: socket.socket, events: int, data: _Client | None) -> None:
        key = self._selector.get_map().get(sock)
        if key is None:
            if events:
                self._selector.register(sock, events, data)
        elif not events:
            self._selector.unregister(sock)
        elif key.events != events:
            self._selector.modify(sock, events, data)

    def _from_agent(self, events: int) -> None:
        if not events & selectors.EVENT_READ:
            return
        data = self._agent.recv(256 * 1024)
        if not data:
            raise EOFError
        for _, body in self._decoder.feed(data):
            op, number, content = unpack(unpack_parts(body))
            client = self._clients.get(number)
            if client is not None:  # else the client has gone meanwhile
                self._said(client, op, content)

    def _said(self, client: _Client, op: Op, content: bytes) -> None:
        """The host has said something of a connection."""
        if op is Op.OPENED and client.target is not None and not client.opened:
            client.opened = True
            if client.target.head:
                client.put(client.target.head)
            else:
                client.said = b"HTTP/1.1 200 Connection established\r\n\r\n"
            if client.head:  # what has come with the head is the server's
                client.put(bytes(client.head))
                client.head.clear()
        elif op is Op.REFUSED:
            fields = json.loads(content)
            self._refuse(client, int(fields["status"]), str(fields["text"]))
        elif op is Op.RESET:
            self._lose(client, tell=False)
        else:
            client.take(op, content)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            number = self._number()
            self._clients[number] = _Client(number, self, sock)

    def _number(self) -> int:
        while True:
            self._next = self._next % (MAX_NUMBER - 1) + 1
            if (number := self._first + self._next) not in self._clients and number != ALL:
                return number

    def _ready(self, client: _Client, events: int) -> None:
        try:
            if client.said:
                self._say(client)
            elif client.ending:
                self._drain(client)
            elif client.target is None:
                self._read_head(client)
            else:
                if events & selectors.EVENT_READ and client.wants_read:
                    client.read()
                if events & selectors.EVENT_WRITE and client.wants_write:
                    client.write()
                if client.done:
                    self._forget(client)
        except OSError:
            self._lose(client)

    def _read_head(self, client: _Client) -> None:
        assert client.sock is not None
        data = client.sock.recv(16 * 1024)
        if not data:
            self._forget(client)
            return
        client.head += data
        try:
            found = split_head(client.head)
            if found is None:
                return
            client.target, client.head = parse_head(found[0]), bytearray(found[1])
        except BadRequest as error:
            self._refuse(client, 400, f"{error}.")
            return
        client.due = time.monotonic() + ANSWER_S
        fields = {"host": client.target.host, "port": client.target.port}
        self.send(pack(Op.OPEN, client.number, json.dumps(fields).encode()))

    def _say(self, client: _Client) -> None:
        assert client.sock is not None
        client.said = client.said[client.sock.send(client.said) :]
        if not client.said and client.ending:
            client.sock.shutdown(socket.SHUT_WR)

    def _drain(self, client: _Client) -> None:
        """Read what the client still sends: a socket closed with unread bytes in it would take the answer back."""
        assert client.sock is not None
        if not client.sock.recv(64 * 1024):
            self._forget(client)

    def _refuse(self, client: _Client, status: int, text: str) -> None:
        client.said, client.ending = answer(status, text), True
        client.due = time.monotonic() + DRAIN_S

    def _lose(self, client: _Client, tell: bool = True) -> None:
        """The client gets a reset, so that it does not take what there was for the whole."""
        if tell and client.target is not None:
            self.send(pack(Op.RESET, client.number))
        if client.sock is not None:
            with suppress(OSError):
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._forget(client)

    def _forget(self, client: _Client) -> None:
        if client.sock is not None:
            self._set(client.sock, 0, None)
        client.close()
        del self._clients[client.number]

    def _end_overdue(self, now: float) -> None:
        for client in self._overdue(now):
            if client.target is None or client.ending:
                self._forget(client)
            else:
                self.send(pack(Op.RESET, client.number))
                self._refuse(client, 504, "the host has not answered.")

    def _overdue(self, now: float) -> Iterator[_Client]:
        waiting = [client for client in self._clients.values() if not client.opened or client.ending]
        return (client for client in waiting if client.due <= now)
