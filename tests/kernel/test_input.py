"""``input()`` and ``getpass()``: each question goes to the client whose cell asks, and so does its end."""

from __future__ import annotations

import asyncio

from jupyter_client.manager import AsyncKernelManager

from tests.kernel.session import Session, connected

Kernel = tuple[AsyncKernelManager, Session]
GETPASS = "import getpass\n"


async def dialogue(session: Session, name: str) -> str:
    """A cell that asks twice, and a client that answers only what its own cell has asked."""
    msg_id = session.client.execute(f"{GETPASS}print({name!r}, input('{name}? '), getpass.getpass('{name}! '))")
    for prompt, password in ((f"{name}? ", False), (f"{name}! ", True)):
        question = await session.input_request()
        assert question["content"] == {"prompt": prompt, "password": password}
        assert question["parent_header"]["msg_id"] == msg_id
        session.client.input(f"{name}{password}")
    printed = (await session.finish(msg_id)).stream()
    assert not await session.client.stdin_channel.msg_ready()
    return printed


async def test_two_clients_ask_at_once_and_each_answers_its_own(kernel: Kernel) -> None:
    manager, first = kernel
    async with connected(manager) as second:
        for _ in range(3):
            printed = await asyncio.gather(dialogue(first, "a"), dialogue(second, "b"))
            assert printed == ["a aFalse aTrue\n", "b bFalse bTrue\n"]


async def test_an_interrupt_ends_the_question_and_the_next_client_is_asked(kernel: Kernel) -> None:
    manager, first = kernel
    async with connected(manager) as second:
        asking = first.client.execute(f"{GETPASS}getpass.getpass('first? ')")
        assert (await first.input_request())["content"]["password"] is True
        await manager.interrupt_kernel()
        assert (await first.finish(asking)).reply["content"]["ename"] == "KeyboardInterrupt"
        asking = second.client.execute("print('got', input('second? '))")
        assert (await second.input_request())["content"]["prompt"] == "second? "
        second.client.input("it")
        assert (await second.finish(asking)).stream() == "got it\n"
        assert not await first.client.stdin_channel.msg_ready()


async def test_an_answer_to_a_question_that_was_interrupted_is_not_taken_for_the_next(kernel: Kernel) -> None:
    manager, session = kernel
    asking = session.client.execute("input('one? ')")
    await session.input_request()
    await manager.interrupt_kernel()
    await session.finish(asking)
    session.client.input("too late")
    # the answer travels on a socket of its own; a whole cell later it has arrived
    await session.run("import time; time.sleep(0.5)")
    asking = session.client.execute("print('got', input('two? '))")
    await session.input_request()
    session.client.input("in time")
    assert (await session.finish(asking)).stream() == "got in time\n"


async def test_what_was_printed_comes_before_the_question(kernel: Kernel) -> None:
    _, session = kernel
    asking = session.client.execute("print('read this first'); input('? ')")
    await session.input_request()
    await session.until_output(asking, "read this first")
    session.client.input("")
    assert (await session.finish(asking)).value == "''"


async def test_a_client_that_answers_no_questions_gets_an_error(session: Session) -> None:
    for code in ("input('? ')", f"{GETPASS}getpass.getpass('? ')"):
        cell = await session.run(code, allow_stdin=False)
        assert cell.reply["content"]["ename"] == "StdinNotImplementedError"


async def test_a_long_unicode_answer(session: Session) -> None:
    asking = session.client.execute("answer = input('? ')")
    await session.input_request()
    session.client.input("grüße 😀" * 20_000)
    await session.finish(asking)
    assert (await session.run("answer == 'grüße 😀' * 20_000")).value == "True"
