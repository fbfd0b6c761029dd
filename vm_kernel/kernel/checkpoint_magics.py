"""``%checkpoint``, ``%checkpoints`` and ``%rollback``: the live state of the session, saved and brought back."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from guest_agent.frames import Kind
from vm_kernel.kernel.hostcall import HostCall
from vm_kernel.kernel.magic_arguments import Parser
from vm_kernel.kernel.tables import html_table, mib, ms, text_table

#: seconds that the agent has to fall silent before a checkpoint
FREEZE_TIMEOUT_S = 10.0

Data = dict[str, str]


def checkpoint(call: HostCall) -> Data:
    """``%checkpoint NAME``: save every variable, file and process of this session's VM. It then goes on."""
    parser = Parser("checkpoint", "Save the live state of this session: every variable, file and process in its VM.")
    parser.add_argument("name", help="by which %%rollback finds it; a name that is taken is saved anew")
    parser.add_argument("--keep", action="store_true", help="keep it when the session ends, for later sessions")
    parser.add_argument("--delete", action="store_true", help="delete that checkpoint instead")
    options = parser.options(call.arguments)
    if options.delete:
        call.pool(lambda pool: pool.delete_checkpoint(options.name))
        return {"text/plain": f"Checkpoint {options.name!r} is deleted."}
    call.ask(Kind.FREEZE, {}, Kind.FROZEN, FREEZE_TIMEOUT_S)
    try:
        facts = call.pool(lambda pool: pool.save_checkpoint(options.name, options.keep))
    finally:
        call.tell(Kind.THAW, {})
    kept = "; it is kept when the session ends" if options.keep else ""
    return {
        "text/plain": f"Checkpoint {facts['name']!r}: {mib(facts['size_mib'])} of changes, "
        f"session paused for {ms(facts['pause_ms'])}{kept}."
    }


def checkpoints(call: HostCall) -> Data:
    """``%checkpoints``: what %rollback can go back to."""
    parser = Parser("checkpoints", "The checkpoints of this session, and those that were kept.")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    options = parser.options(call.arguments)
    answer = call.pool(lambda pool: pool.checkpoints())
    if options.json:
        return {"text/plain": json.dumps(answer, indent=2)}
    used = f"{mib(answer['used_mib'])} of {mib(answer['limit_mib'])} on disk are in use by all checkpoints"
    if not answer["checkpoints"]:
        return {"text/plain": f"There is no checkpoint. `%checkpoint NAME` saves one. {used}."}
    rows = [_row(facts) for facts in answer["checkpoints"]]
    return {
        "text/plain": f"{text_table('', _COLUMNS, rows)}\n\n{used}",
        "text/html": f"{html_table('', _COLUMNS, rows)}<p>{used}</p>",
    }


def rollback(call: HostCall) -> Data:
    """``%rollback NAME``: go on from that checkpoint, in this notebook."""
    parser = Parser("rollback", "Bring back the state that a checkpoint has saved. What has happened since is lost.")
    parser.add_argument("name", help="of a checkpoint, see %%checkpoints")
    options = parser.options(call.arguments)
    lease = call.pool(lambda pool: pool.rollback(options.name))
    call.move(lease)
    return {"text/plain": f"Back at checkpoint {options.name!r}, in {ms(lease.vm.acquire_ms)}."}


_COLUMNS = ("checkpoint", "saved", "changes", "kept", "usable")


def _row(facts: dict[str, Any]) -> list[object]:
    saved = datetime.fromisoformat(facts["created_at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    usable = facts["refusal"] or "yes"
    return [facts["name"], saved, mib(facts["size_mib"]), "yes" if facts["kept"] else "no", usable]
