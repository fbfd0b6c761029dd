"""Code in the guest owns ipykernel and can make it say anything. Clients get what is a message, and nothing else."""

from __future__ import annotations

from tests.kernel.session import Session

SAY = """
import json
kernel = get_ipython().kernel
parent = {k: str(v) for k, v in kernel.get_parent()['header'].items()}
def say(msg_type, content=b'{}', topic=b't', parent=parent, header=None, metadata=b'{}'):
    given = {'msg_id': 'forged', 'msg_type': msg_type, 'session': 'forged', 'username': 'x' * 9,
             'date': '2020-99-99T99:99:99Z', 'version': '99'}
    header = json.dumps(given).encode() if header is None else header
    parent = json.dumps(parent).encode()
    kernel.iopub_socket.send_multipart([topic, b'<IDS|MSG>', b'', header, parent, metadata, content])
"""


async def test_what_is_no_message_of_a_kernel_does_not_reach_clients(session: Session) -> None:
    await session.run(SAY)
    cell = await session.run(
        """
parent = {k: str(v) for k, v in kernel.get_parent()['header'].items()}
for bad in (b'', b'[]', b'{', b'{"a": NaN}', b'"x"', b'[' * 100000):
    say('stream', content=bad, parent=parent)
    say('stream', metadata=bad, parent=parent)
    say('stream', header=bad, parent=parent)
for msg_type in ('iopub_welcome', 'shutdown_reply', 'execute_reply', 'input_request', 'kernel_info_reply', '', 'x'):
    say(msg_type, b'{"status": "ok"}', parent=parent)
for state in ('starting', 'dead', 'restarting', None, [], 5):
    say('status', json.dumps({'execution_state': state}).encode(), parent=parent)
say('stream', b'{"name": "stdout", "text": "split"}', topic=b'<IDS|MSG>', parent=parent)
say('stream', b'{"name": "stdout", "text": "long"}', topic=b't' * 100000, parent=parent)
say('stream', b'{"name": "stdout", "text": "a"}', parent=parent)
print('b')
"""
    )
    assert cell.status == "ok"
    assert cell.types == ["busy", "execute_input", "stream", "stream", "idle"]
    assert cell.stream() == "ab\n"


async def test_headers_are_the_hosts_and_parents_are_the_clients_own(session: Session) -> None:
    await session.run(SAY)
    cell = await session.run(
        """
parent = {k: str(v) for k, v in kernel.get_parent()['header'].items()}
say('stream', b'{"name": "stdout", "text": "a"}', parent=parent | {'date': '2020-99-99T99:99:99Z', 'username': 'root'})
say('stream', b'{"name": "stdout", "text": "orphan"}', parent={'msg_id': 'unknown', 'date': '2020-99-99T99:99:99Z'})
"""
    )
    (message,) = [m for m in cell.iopub if m["msg_type"] == "stream"]
    assert message["header"]["session"] == cell.reply["header"]["session"]
    assert message["header"]["msg_id"] != "forged"
    assert message["parent_header"] == cell.reply["parent_header"]
    await session.until(lambda: "orphan" in session.printed(""), "the message with an unknown parent, as an orphan")


async def test_a_request_is_answered_once_and_by_its_own_kind_of_reply(session: Session) -> None:
    cell = await session.run(
        """
from jupyter_client.session import Session
kernel = get_ipython().kernel
sockets = kernel.shell_channel_thread.manager
socket = sockets.get_subshell_to_shell_channel_socket(None)
for msg_type in ('inspect_reply', 'execute_request', 'execute_reply', 'execute_reply'):
    content = {'status': 'ok', 'execution_count': 77, 'odd': msg_type}
    kernel.session.send(socket, msg_type, content, kernel.get_parent(), kernel._shell_parent_ident.get())
kernel.session.send(socket, 'execute_reply', {'status': 'ok'}, {'msg_id': 'unknown'}, kernel._shell_parent_ident.get())
"""
    )
    assert cell.reply["content"] == {"status": "ok", "execution_count": 77, "payload": [], "user_expressions": {}}
    await session.drain(0.5)
    assert session.replies == {}
    assert (await session.run("'goes on'")).value == "'goes on'"
