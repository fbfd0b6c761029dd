"""Moves the bytes of a session's open connections, in a thread. Ends with its session. See egress.py."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vm_kernel.guest.egress import Connection, Egress

#: seconds between two looks for connections that have been idle for too long
_LOOK_S = 1.0


class Loop:
    """One thread over all sockets of a session."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._selector = selectors.DefaultSelector()
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        self._selector.register(self._reading, selectors.EVENT_READ)
        #: those whose sockets are ours to close
        self._known: dict[int, Connection] = {}
        self._awake = False
        threading.Thread(target=self._run, name="egress", daemon=True).start()

    def add(self, connection: Connection) -> None:
        """Its socket is ours from now on. The caller holds the lock."""
        self._known[id(connection)] = connection
        self.wake()

    def wake(self) -> None:
        """There is news. From any thread."""
        with self._egress.lock:
            if self._awake:
                return
            self._awake = True
        with suppress(OSError):
            self._writing.send(b"\0")

    def _run(self) -> None:
        egress, look = self._egress, time.monotonic() + _LOOK_S
        while True:
            with egress.lock:
                self._watch()
                if egress.closed and not self._known:
                    break
                waiting = _LOOK_S if self._known else None
            ready = self._selector.select(waiting)
            with egress.lock:
                self._awake = False
                for key, events in ready:
                    if key.data is None:
                        with suppress(OSError):
                            self._reading.recv(4096)
                    elif not key.data.over:
                        self._move(key.data, events)
                if time.monotonic() >= look:
                    look = time.monotonic() + _LOOK_S
                    self._end_idle(look - _LOOK_S - egress.idle_s)
        self._selector.close()
        self._reading.close()
        self._writing.close()

    def _watch(self) -> None:
        """Wait for what can be used; close what is over."""
        room = self._egress.has_room
        for key, connection in list(self._known.items()):
            if connection.over:
                self._set(connection, 0)
                connection.close()
                del self._known[key]
            else:
                # not even written, for what has been written is confirmed to the guest
                reading = selectors.EVENT_READ if room and connection.wants_read else 0
                writing = selectors.EVENT_WRITE if room and connection.wants_write else 0
                self._set(connection, reading | writing)

    def _set(self, connection: Connection, events: int) -> None:
        assert connection.sock is not None
        key = self._selector.get_map().get(connection.sock)
        if key is None:
            if events:
                self._selector.register(connection.sock, events, connection)
        elif not events:
            self._selector.unregister(connection.sock)
        elif key.events != events:
            self._selector.modify(connection.sock, events, connection)

    def _move(self, connection: Connection, events: int) -> None:
        egress, before = self._egress, connection.sent
        try:
            if events & selectors.EVENT_READ:
                connection.read()
            if events & selectors.EVENT_WRITE:
                connection.write()
        except OSError as error:
            egress.drop(connection, f"lost: {error.strerror or error}")
            return
        connection.active = time.monotonic()
        egress.budget.spend(connection.sent - before)
        if connection.done:
            egress.drop(connection, "ended", tell=False)
        elif egress.budget.spent:
            egress.drop(connection, "egress_max_mib is used up")

    def _end_idle(self, oldest: float) -> None:
        for connection in list(self._egress.connections.values()):
            if connection.active < oldest and connection.sock is not None:
                self._egress.drop(connection, f"idle for {self._egress.idle_s:g} s")
