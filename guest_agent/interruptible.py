"""Inside ipykernel: makes an interrupt take effect where it should, and only there. The agent's part: interrupts.py.

**It must not hit ipykernel.** A KeyboardInterrupt between the end of a cell and its reply, or in the event loop, loses
the reply, or ends the kernel's main thread. Under emulation those moments are long, and impatient users press twice.

**It must end loops in C.** ``sum(range(10**12))`` cannot be interrupted in CPython: the loop is in C, holds the GIL,
and never looks whether a signal has come. It does ask its iterator for one item after the other, by a pointer in the
iterator's type. While the agent has that pointer lead to a function that returns NULL without an exception, the
iterator is at its end, the loop returns, and the interpreter raises the KeyboardInterrupt that has been due.

For both the agent sends SIGHUP first. Our handler of it puts the pointers back and judges whether the interrupt may
strike where the main thread is; if it may, SIGINT is due, as if it had just come. CPython calls Python's signal
handlers in the order of their numbers, SIGHUP (1) before SIGINT (2), and both before any other Python code.

**It must not make a second kernel.** ``!command`` and pexpect fork, and run Python in the child until it is another
program. A KeyboardInterrupt there goes up to IPython: the child is then a copy of the kernel that shares its sockets
and takes its events away. So an interrupt waits until the program runs, and a copy ends with its cell.

**It must not get lost.** CPython ignores exceptions in finalizers, in hooks that follow a fork, and the like. A
KeyboardInterrupt that ends there is due again.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

#: what becomes of an interrupt, for the agent to read
LET_THROUGH, HELD_OFF, NOT_NEEDED, TOO_EARLY = 1, 2, 3, 4
#: offset of tp_iternext in PyTypeObject on 64-bit builds (cpython: Include/cpython/object.h)
_TP_ITERNEXT = 224
#: bytes of _PyRuntime that are searched for the word that names the GIL's holder
_RUNTIME_BYTES = 4096


def prepare(facts_file: str) -> None:
    """Install the handler and write what the agent needs. The agent calls it in the template, in the main thread.

    On a Python in which the places cannot be found nothing is written, and interrupts are what ipykernel makes of them.
    """
    _end_copies()
    holder = _holder_of_the_gil()
    if holder is None or threading.current_thread() is not threading.main_thread():
        return
    slots = {id(kind) + _TP_ITERNEXT for kind in _iterator_types()}
    saved = [(slot, ctypes.c_uint64(_word(slot))) for slot in slots]
    if not all(value.value for _, value in saved):
        return
    noticed, judged, verdict = ctypes.c_uint64(0), ctypes.c_uint64(0), ctypes.c_uint64(0)
    strikes = _Strikes()

    def hang_up(frame: FrameType) -> int:
        noticed.value += 1
        for slot, value in saved:
            ctypes.memmove(slot, ctypes.byref(value), 8)
        verdict.value = strikes.judge(frame)
        judged.value = noticed.value
        return signal.SIGINT if verdict.value == LET_THROUGH else 0

    signal.signal(signal.SIGHUP, _handler(hang_up))
    signal.signal(signal.SIGURG, lambda *_: strikes.wake_up())
    ignored = sys.unraisablehook

    def unraisable(args: Any) -> None:
        if args.exc_type is KeyboardInterrupt:
            verdict.value = HELD_OFF
        else:
            ignored(args)

    sys.unraisablehook = unraisable
    facts = {
        "noticed": ctypes.addressof(noticed),
        "judged": ctypes.addressof(judged),
        "verdict": ctypes.addressof(verdict),
        "holder": holder,
        "main_thread": _thread_state(),
        "ends": ctypes.cast(ctypes.pythonapi.PyErr_Occurred, ctypes.c_void_p).value,
        "slots": [[slot, value.value] for slot, value in saved],
    }
    Path(facts_file).write_text(json.dumps(facts))


class _Strikes:
    """Decides where a KeyboardInterrupt may strike, from the functions that are being executed."""

    def __init__(self) -> None:
        from IPython.core.getipython import get_ipython
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.utils._process_posix import ProcessHandler
        from ptyprocess import PtyProcess

        shell: Any = get_ipython()
        self._loop = shell.kernel.io_loop.asyncio_loop
        handlers = dict(shell.kernel.shell_handlers)
        del handlers["execute_request"]
        #: the user's code: in a cell; in a widget's callback, a property that completion looks at
        self._users = {InteractiveShell.run_ast_nodes.__code__, *map(_code_of, handlers.values())}
        #: the interrupt has struck already and is being shown
        self._shown = {InteractiveShell.showtraceback.__code__, type(shell).showtraceback.__code__}
        self._forks = PtyProcess.spawn.__func__.__code__
        self._runs_command = ProcessHandler.system.__code__

    def wake_up(self) -> None:
        """Interrupt a system call, or have the event loop look at what an interrupt has asked of it."""
        self._loop.call_soon_threadsafe(lambda: None)

    def judge(self, frame: FrameType | None) -> int:
        """Whether an interrupt may strike while the main thread is at ``frame``."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return LET_THROUGH  # ipykernel ignores it while it is idle, and takes note of it while a cell awaits
        while frame is not None:
            if frame.f_code in self._shown:
                return NOT_NEEDED
            if frame.f_code is self._forks or (frame.f_code is self._runs_command and not _has_command(frame)):
                return TOO_EARLY
            if frame.f_code in self._users:
                return LET_THROUGH
            frame = frame.f_back
        return HELD_OFF


def _handler(due: Callable[[FrameType], int]) -> Any:
    """A signal handler after which the signal is due that ``due`` returns for the interrupted frame; 0: none.

    It must not be raised in a Python function, which would be the last in the traceback that the user sees. So the
    handler is PyErr_SetInterruptEx itself, and ``due`` converts its argument. It looks at no second one.
    """

    class Due:
        @classmethod
        def from_param(cls, _number: int) -> ctypes.c_int:
            return ctypes.c_int(due(sys._getframe(1)))

    handler = ctypes.PyDLL(None).PyErr_SetInterruptEx
    handler.argtypes = [Due, ctypes.py_object]  # type: ignore[list-item]
    return handler


def _end_copies() -> None:
    """Have a process that a cell has forked, and that does not end by itself, end where its cell does."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    kernel = os.getpid()

    def end_copy() -> None:
        if os.getpid() != kernel:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    shell.events.register("post_execute", end_copy)


def _has_command(frame: FrameType) -> bool:
    """Whether ProcessHandler.system has what it ends when it is interrupted: a child that has been listened to."""
    child = frame.f_locals.get("child")
    return child is not None and child.before is not None


def _code_of(handler: Any) -> CodeType:
    code: CodeType = getattr(handler, "__func__", handler).__code__
    return code


def _iterator_types() -> list[type]:
    """Types of iterators that can go on for ever without running any Python code."""
    endless = (itertools.count(), itertools.repeat(0), itertools.cycle([0]))
    long = (iter(range(1)), iter(range(1 << 70)), itertools.product([0]), itertools.permutations([0]))
    return [type(iterator) for iterator in (*endless, *long, itertools.combinations([0], 1))]


def _holder_of_the_gil() -> int | None:
    """Address of the word that points to the running thread's state and is 0 while no thread holds the GIL."""
    try:
        runtime = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
    except ValueError:
        return None
    candidates = _words_that_name_this_thread(range(runtime, runtime + _RUNTIME_BYTES, 8))
    found: list[int] = []
    other = threading.Thread(target=lambda: found.extend(_words_that_name_this_thread(candidates)))
    other.start()
    other.join()
    # a plain C function is called without the GIL
    unheld = ctypes.c_uint64(1)
    copy = ctypes.CDLL(None).memcpy
    for address in found:
        copy(ctypes.byref(unheld), ctypes.c_void_p(address), ctypes.c_size_t(8))
        if unheld.value == 0:
            return address
    return None


def _words_that_name_this_thread(addresses: Any) -> list[int]:
    state = _thread_state()
    return [address for address in addresses if _word(address) == state]


def _thread_state() -> int:
    get = ctypes.pythonapi.PyThreadState_Get
    get.restype = ctypes.c_void_p
    return int(get())


def _word(address: int) -> int:
    """Read while the GIL is held, unlike what ctypes calls as a function."""
    return ctypes.c_uint64.from_address(address).value
