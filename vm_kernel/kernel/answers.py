"""Answers that the host gives in the guest's place: errors, aborted cells, the output of host cells."""

from __future__ import annotations

from typing import Any

from vm_kernel.errors import VMKernelError
from vm_kernel.kernel.outlet import Outlet
from vm_kernel.kernel.requests import Request


def error_content(ename: str, evalue: str) -> dict[str, Any]:
    """Content of an error message or, with ``status``, of a reply."""
    first, *rest = evalue.split("\n")
    return {"ename": ename, "evalue": evalue, "traceback": [f"{ename}: {first}", *rest]}


def refuse(outlet: Outlet, request: Request, error: VMKernelError, count: int | None = None) -> None:
    """End a request with one of our errors, see ``fail``."""
    fail(outlet, request, type(error).__name__, str(error), count)


def fail(
    outlet: Outlet, request: Request, ename: str, evalue: str, count: int | None = None, begun: bool = False
) -> None:
    """End a request with an error. With ``count``, a cell that has not ``begun`` is shown with that execution count."""
    content = error_content(ename, evalue)
    outlet.busy(request)
    reply: dict[str, Any] = {"status": "error", **content}
    if request.is_execute and not request.replied:
        if count is not None and not begun:
            begin_cell(outlet, request, count)
        outlet.publish("error", content, request)
        reply |= {"execution_count": count or 0, "user_expressions": {}, "payload": []}
    outlet.reply(request, reply)
    outlet.idle(request)


def abort(outlet: Outlet, request: Request) -> None:
    """End a cell that does not run because one before it has failed."""
    outlet.answer(request, {"status": "aborted"})


def begin_cell(outlet: Outlet, request: Request, count: int) -> None:
    """Tell all clients what runs now."""
    outlet.busy(request)
    if not request.silent:
        content = {"code": str(request.content.get("code", "")), "execution_count": count}
        outlet.publish("execute_input", content, request)


def show_output(outlet: Outlet, request: Request, data: dict[str, str], count: int) -> None:
    """The whole life of a host cell that has something to display."""
    begin_cell(outlet, request, count)
    outlet.publish("display_data", {"data": data, "metadata": {}, "transient": {}}, request)
    end_cell(outlet, request, count)


def end_cell(outlet: Outlet, request: Request, count: int) -> None:
    """A host cell has done what it was to do."""
    reply = {"status": "ok", "execution_count": count, "user_expressions": {}, "payload": []}
    outlet.reply(request, reply)
    outlet.idle(request)
