"""What an execution gives: output as it comes, and the whole of it in the end. No input or output happens here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "error", "timeout"]


@dataclass(frozen=True)
class StreamOutput:
    """Text that the code has printed. name: ``stdout`` or ``stderr``."""

    name: str
    text: str


@dataclass(frozen=True)
class RichOutput:
    """Something displayed, or the value of the last expression.

    data: by MIME type; text as str, binary types (image/png) in base64, JSON types as objects.
    display_id: by which the code can replace it later; None if it cannot.
    """

    data: dict[str, Any]
    metadata: dict[str, Any]
    is_result: bool = False
    display_id: str | None = None

    @property
    def text(self) -> str:
        """Its ``text/plain``; empty if it has none."""
        return str(self.data.get("text/plain", ""))


@dataclass(frozen=True)
class ErrorOutput:
    """The exception that ended the code. traceback: lines, with ANSI colours, as IPython shows them."""

    name: str
    message: str
    traceback: list[str]


Output = StreamOutput | RichOutput | ErrorOutput


@dataclass(frozen=True)
class ExecutionResult:
    """What came of one ``Sandbox.execute()``.

    status: ``ok``; ``error`` (see ``error``); ``timeout``: it was stopped because its time was up.
    outputs: displayed objects and the result, in order, as they were in the end (updated, cleared).
    duration_s: seconds from the request to its end, as the caller saw them.
    execution_count: as in a notebook; 0 if the code never began.
    truncated: the code has put out more than ``max_output_bytes``; what came after that is missing.
    killed: it did not stop when it was interrupted, so its VM was destroyed; ``Sandbox.restart()`` takes a new one.
    """

    status: Status
    stdout: str
    stderr: str
    outputs: list[RichOutput]
    error: ErrorOutput | None
    duration_s: float
    execution_count: int
    truncated: bool = False
    killed: bool = False

    @property
    def ok(self) -> bool:
        """True if the code ran to its end."""
        return self.status == "ok"

    @property
    def result(self) -> RichOutput | None:
        """The value of the last expression; None if there was none."""
        return next((output for output in reversed(self.outputs) if output.is_result), None)


@dataclass
class Collector:
    """Adds up the messages of one execution, up to ``limit`` bytes. ``on_output`` is called for each output."""

    limit: int
    on_output: Callable[[Output], None] | None = None
    outputs: list[RichOutput] = field(default_factory=list)
    error: ErrorOutput | None = None
    truncated: bool = False
    _texts: dict[str, list[str]] = field(default_factory=lambda: {"stdout": [], "stderr": []})
    #: where outputs are that can be replaced, by display id
    _places: dict[str, list[int]] = field(default_factory=dict)
    _bytes: int = 0
    _clear_due: bool = False

    def add(self, msg_type: str, content: dict[str, Any], size: int) -> None:
        """One message of the guest on iopub. ``size``: its bytes. What is malformed is left out."""
        self._bytes += size
        if self._bytes > self.limit:
            self.truncated = True
            return
        if msg_type == "clear_output":
            self._clear_due = True
            if not content.get("wait"):
                self._clear()
            return
        output = _output(msg_type, content)
        if output is None:
            return
        if self._clear_due:
            self._clear()
        if msg_type == "update_display_data":
            self._replace(output, size)
        else:
            self._keep(output)
        if self.on_output is not None:
            self.on_output(output)

    def text(self, name: str) -> str:
        """Everything printed to that stream."""
        return "".join(self._texts[name])

    def _keep(self, output: Output) -> None:
        if isinstance(output, StreamOutput):
            self._texts[output.name].append(output.text)
        elif isinstance(output, ErrorOutput):
            self.error = output
        else:
            if output.display_id is not None:
                self._places.setdefault(output.display_id, []).append(len(self.outputs))
            self.outputs.append(output)

    def _replace(self, output: Output, size: int) -> None:
        """Counted once for each output that it replaces: or one small message would be much work."""
        if isinstance(output, RichOutput) and output.display_id is not None:
            places = self._places.get(output.display_id, [])
            self._bytes += size * max(0, len(places) - 1)
            for place in places:
                self.outputs[place] = output

    def _clear(self) -> None:
        self._clear_due = False
        self.outputs.clear()
        self._places.clear()
        for texts in self._texts.values():
            texts.clear()


def _output(msg_type: str, content: dict[str, Any]) -> Output | None:
    """The guest's message as an output; None if it is none, or malformed."""
    if msg_type == "stream":
        name, text = content.get("name"), content.get("text")
        return StreamOutput(name, text) if name in ("stdout", "stderr") and isinstance(text, str) else None
    if msg_type == "error":
        lines = content.get("traceback")
        traceback = [str(line) for line in lines] if isinstance(lines, list) else []
        return ErrorOutput(str(content.get("ename")), str(content.get("evalue")), traceback)
    if msg_type not in ("display_data", "execute_result", "update_display_data"):
        return None
    data, metadata, transient = (content.get(name) or {} for name in ("data", "metadata", "transient"))
    if not all(isinstance(part, dict) for part in (data, metadata, transient)):
        return None
    display_id = transient.get("display_id")
    return RichOutput(data, metadata, msg_type == "execute_result", display_id if isinstance(display_id, str) else None)
