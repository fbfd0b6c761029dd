"""The debugger's whole cycle, as JupyterLab's panel goes through it. debugpy itself never leaves the VM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel.session import Session

CODE = """def double(number):
    result = 2 * number
    return result

words = {'a': 1}
print('answer', double(21))"""
#: the line in which ``result`` has its value
LINE = 3


class Debugger:
    """Sends debug requests and collects debug events."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.sequence = 0

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The body of the answer to a request that must succeed."""
        self.sequence += 1
        request = {"type": "request", "seq": self.sequence, "command": command, "arguments": arguments}
        reply = await self.session.ask("debug_request", request, "control")
        content = reply.reply["content"]
        assert reply.reply["msg_type"] == "debug_reply"
        assert content["success"] is True, content
        return dict(content.get("body") or {})

    def events(self, name: str) -> list[dict[str, Any]]:
        """The bodies of the events of that name so far."""
        messages = [m for messages in self.session.iopub.values() for m in messages]
        events = [m["content"] for m in messages if m["msg_type"] == "debug_event"]
        return [event["body"] for event in events if event["event"] == name]

    async def started(self) -> None:
        """As JupyterLab's switch does it."""
        await self.ask("initialize", clientID="test", clientName="test", adapterID="", linesStartAt1=True)
        await self.ask("attach")

    async def stopped_in(self, code: str, line: int) -> tuple[str, int]:
        """Run a cell with a breakpoint and wait for it. The cell's message id, and the thread that has stopped."""
        path = (await self.ask("dumpCell", code=code))["sourcePath"]
        set_ = await self.ask(
            "setBreakpoints", source={"path": path}, breakpoints=[{"line": line}], sourceModified=False
        )
        assert [each["verified"] for each in set_["breakpoints"]] == [True]
        await self.ask("configurationDone")
        before = len(self.events("stopped"))
        msg_id = self.session.client.execute(code)
        await self.session.until(lambda: len(self.events("stopped")) > before, "a stop at the breakpoint")
        stop = self.events("stopped")[-1]
        assert stop["reason"] == "breakpoint"
        return msg_id, stop["threadId"]


@pytest.mark.timeout(400)
async def test_a_breakpoint_from_its_setting_to_the_end_of_the_cell(session: Session) -> None:
    debugger = Debugger(session)
    await debugger.started()
    cell, thread = await debugger.stopped_in(CODE, LINE)
    assert thread in (await debugger.ask("debugInfo"))["stoppedThreads"]

    frame = (await debugger.ask("stackTrace", threadId=thread))["stackFrames"][0]
    assert (frame["name"], frame["line"]) == ("double", LINE)
    assert (await debugger.ask("source", source={"path": frame["source"]["path"]}))["content"] == CODE

    scopes = (await debugger.ask("scopes", frameId=frame["id"]))["scopes"]
    local = (await debugger.ask("variables", variablesReference=scopes[0]["variablesReference"]))["variables"]
    assert {("number", "21"), ("result", "42")} <= {(each["name"], each["value"]) for each in local}
    rich = await debugger.ask("richInspectVariables", variableName="result", frameId=frame["id"])
    assert rich["data"]["text/plain"] == "42"
    evaluated = await debugger.ask("evaluate", expression="number + 1", frameId=frame["id"], context="repl")
    assert evaluated["result"] == "22"

    assert cell not in session.replies
    await debugger.ask("next", threadId=thread)
    await session.until(lambda: len(debugger.events("stopped")) == 2, "a stop after a step")
    await debugger.ask("continue", threadId=thread)
    assert (await session.finish(cell)).stream() == "answer 42\n"
    await debugger.ask("disconnect", restart=False, terminateDebuggee=False)
    assert (await debugger.ask("debugInfo"))["isStarted"] is False
    assert (await session.run("double(4)")).value == "8"


async def test_variables_are_inspected_without_a_breakpoint(session: Session) -> None:
    """The variable inspector asks without the debugger having been started."""
    await session.run("import pandas\nnumber = 42\ntable = pandas.DataFrame({'column': [1]})")
    debugger = Debugger(session)
    variables = {each["name"]: each for each in (await debugger.ask("inspectVariables"))["variables"]}
    assert (variables["number"]["value"], variables["number"]["type"]) == ("42", "int")
    rich = await debugger.ask("richInspectVariables", variableName="table")
    assert "<th>column</th>" in rich["data"]["text/html"]
