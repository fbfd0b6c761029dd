"""Between the guest and the clients: each message is taken apart and built anew, under the policy of the session.

What may be in the outputs themselves is in ``vm_kernel.kernel.outputs``. Here: which messages carry outputs, and
where. Under the policy ``trusted`` everything passes as it is, but for what the kernel says about itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vm_kernel.guest.messages import GuestMessage, WireError
from vm_kernel.kernel.outputs import rules
from vm_kernel.kernel.outputs.rules import TRUSTED, Rules
from vm_kernel.kernel.outputs.widgets import Comms
from vm_kernel.kernel.wire import to_json

Content = dict[str, Any]

#: what an answer of the Debug Adapter Protocol has
_DEBUG = ("type", "seq", "request_seq", "success", "command", "message", "body")


class Gate:
    """One session's. ``close_comm`` is called with the id of a comm that clients never hear of."""

    def __init__(self, close_comm: Callable[[str], None], kernel_info: Callable[[], Content]) -> None:
        self._rules = Rules()
        self._comms = Comms(self._rules)
        self._rules.shows_widget = self._comms.shows
        self._close_comm = close_comm
        self._kernel_info = kernel_info
        self._published: dict[str, Callable[[GuestMessage], Content | None]] = {
            "stream": lambda message: rules.stream(message.content),
            "error": lambda message: rules.error(message.content),
            "display_data": self._display,
            "update_display_data": self._display,
            "execute_result": self._result,
            "comm_open": self._comm_open,
            "comm_msg": lambda message: self._comms.message(message.content),
            "comm_close": self._comm_close,
        }
        self._replies: dict[str, Callable[[Content], Content]] = {
            "execute_reply": self._execute_reply,
            "inspect_reply": self._inspect_reply,
            "kernel_info_reply": lambda content: self._kernel_info(),
            "comm_info_reply": self._comm_info_reply,
            "debug_reply": self._debug_reply,
        }

    @property
    def policy(self) -> str:
        """The policy of the session's VM."""
        return self._rules.policy

    @policy.setter
    def policy(self, policy: str) -> None:
        self._rules.policy = policy

    def client_opens(self, content: Content) -> None:
        """A client opens a comm; it will hear what the guest says over it."""
        self._comms.opened_by_client(content)

    def published(self, message: GuestMessage) -> GuestMessage | None:
        """What the guest has published, as clients may have it. None: not at all. Raises WireError."""
        build = self._published.get(message.msg_type)
        if self.policy == TRUSTED or build is None:
            return message
        message = _with_whole_characters(message)
        content = build(message)
        return None if content is None else _with_content(message, content)

    def replied(self, message: GuestMessage) -> GuestMessage:
        """The guest's reply to a client, as that may have it. Raises WireError."""
        build = self._replies.get(message.msg_type)
        if build is None or (self.policy == TRUSTED and message.msg_type != "kernel_info_reply"):
            return message
        message = _with_whole_characters(message)
        return _with_content(message, build(message.content))

    # ---- iopub

    def _display(self, message: GuestMessage) -> Content:
        content, transient = message.content, message.content.get("transient")
        data, metadata = self._rules.bundle(content.get("data"), content.get("metadata"), message.parent_id)
        display_id = transient.get("display_id") if isinstance(transient, dict) else None
        kept = {"display_id": display_id} if isinstance(display_id, str) else {}
        return {"data": data, "metadata": metadata, "transient": kept}

    def _result(self, message: GuestMessage) -> Content:
        return self._display(message) | {"execution_count": _integer(message.content.get("execution_count"))}

    def _comm_open(self, message: GuestMessage) -> Content | None:
        """What clients do not hear of is closed, as a front end does that does not know the target."""
        content = self._comms.open(message.content) if self.policy == rules.ISOLATED else None
        comm_id = message.content.get("comm_id")
        if content is None and isinstance(comm_id, str):
            self._close_comm(comm_id)
        return content

    def _comm_close(self, message: GuestMessage) -> Content | None:
        comm_id = message.content.get("comm_id")
        known = self._comms.knows(comm_id)
        self._comms.closed(comm_id)
        return {"comm_id": comm_id, "data": {}} if known else None

    # ---- replies

    def _execute_reply(self, content: Content) -> Content:
        payload, expressions = content.get("payload"), content.get("user_expressions")
        status = content.get("status")
        made: Content = {"status": status if status in ("ok", "error", "aborted") else "error"}
        if made["status"] == "aborted":
            return made
        made["execution_count"] = _integer(content.get("execution_count"))
        if made["status"] == "error":
            made |= rules.error(content)
        entries = payload if isinstance(payload, list) else []
        made["payload"] = [kept for entry in entries if (kept := _payload(entry)) is not None]
        made["user_expressions"] = {}
        for name, value in expressions.items() if isinstance(expressions, dict) else ():
            if isinstance(value, dict):
                made["user_expressions"][name] = self._expression(value)
        return made

    def _expression(self, value: Content) -> Content:
        if value.get("status") != "ok":
            return {"status": "error", **rules.error(value)}
        data, metadata = self._rules.bundle(value.get("data"), value.get("metadata"))
        return {"status": "ok", "data": data, "metadata": metadata}

    def _inspect_reply(self, content: Content) -> Content:
        if content.get("status") != "ok":
            return {"status": "error", **rules.error(content)}
        data, metadata = self._rules.bundle(content.get("data"), content.get("metadata"))
        return {"status": "ok", "found": content.get("found") is True, "data": data, "metadata": metadata}

    def _comm_info_reply(self, content: Content) -> Content:
        comms = content.get("comms")
        known = {
            comm_id: {"target_name": str(info.get("target_name", "")) if isinstance(info, dict) else ""}
            for comm_id, info in (comms.items() if isinstance(comms, dict) else ())
            if self._comms.knows(comm_id)
        }
        return {"status": "ok", "comms": known}

    def _debug_reply(self, content: Content) -> Content:
        """An answer of the debugger. Front ends render one part: the data of a rich variable."""
        made = {key: content[key] for key in _DEBUG if key in content}
        body = made.get("body")
        if isinstance(body, dict) and "data" in body:
            data, metadata = self._rules.bundle(body["data"], body.get("metadata"))
            made["body"] = {**body, "data": data, "metadata": metadata}
        return made


def _payload(entry: object) -> Content | None:
    """Pages as text, text for the next cell, and ``exit`` in a console; what opens files and editors is not there."""
    if not isinstance(entry, dict):
        return None
    data = entry.get("data")
    if entry.get("source") == "page" and isinstance(data, dict):
        text = rules.as_text(data.get("text/plain")) or ""
        return {"source": "page", "data": {"text/plain": text}, "start": _integer(entry.get("start"))}
    if entry.get("source") == "set_next_input" and isinstance(entry.get("text"), str):
        return {"source": "set_next_input", "text": entry["text"], "replace": entry.get("replace") is True}
    if entry.get("source") == "ask_exit":
        return {"source": "ask_exit", "keepkernel": entry.get("keepkernel") is True}
    return None


def _integer(value: object) -> int:
    return value if type(value) is int else 0


def _with_whole_characters(message: GuestMessage) -> GuestMessage:
    """Without halves of surrogate pairs, which JSON can spell: no notebook that has one can be saved."""
    if b"\\ud" not in message.parts[3] and b"\\uD" not in message.parts[3]:
        return message
    return _with_content(message, _whole(message.content))


def _whole(value: Any) -> Any:
    """One text at a time: all of a message's at once would need several times its memory."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_whole(entry) for entry in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(entry) for key, entry in value.items()}
    return value


def _with_content(message: GuestMessage, content: Content) -> GuestMessage:
    """The message with another content; its bytes stay if that is the same."""
    if content == message.content:
        return message
    try:
        encoded = to_json(content)
    except ValueError:
        raise WireError("a number that JSON cannot have") from None
    parts = message.parts.copy()
    parts[3] = encoded
    return message._replace(content=content, parts=parts)
