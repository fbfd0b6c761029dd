"""Inside ipykernel: what the agent must know to end a loop in C that no signal ends.

``sum(range(10**12))`` cannot be interrupted in CPython: the loop is in C, holds the GIL, and never looks whether a
signal has come. It does ask its iterator for one item after the other, by a pointer in the iterator's type. While the
agent (``stuck.py``) has that pointer lead to a function that returns NULL without an exception, the iterator is at its
end, the loop returns, and the interpreter raises the KeyboardInterrupt that has been due.

The pointers are put back by our handler of SIGHUP, which the agent sends along with each SIGINT: CPython calls Python's
signal handlers in the order of their numbers, SIGHUP (1) before SIGINT (2), and both before any other Python code. The
same handler counts; so the agent sees whether signals get through at all.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import signal
import threading
from pathlib import Path
from typing import Any

#: offset of tp_iternext in PyTypeObject on 64-bit builds (cpython: Include/cpython/object.h)
_TP_ITERNEXT = 224
#: bytes of _PyRuntime that are searched for the word that names the GIL's holder
_RUNTIME_BYTES = 4096


def prepare(facts_file: str) -> None:
    """Install the handler and write what the agent needs. The agent calls it in the template, in the main thread.

    On a Python in which the places cannot be found nothing is written, and such loops stay as they are.
    """
    holder = _holder_of_the_gil()
    if holder is None or threading.current_thread() is not threading.main_thread():
        return
    slots = {id(kind) + _TP_ITERNEXT for kind in _iterator_types()}
    saved = [(slot, ctypes.c_uint64(_word(slot))) for slot in slots]
    if not all(value.value for _, value in saved):
        return
    counter = ctypes.c_uint64(0)

    def restore(_number: int, _frame: Any) -> None:
        for slot, value in saved:
            ctypes.memmove(slot, ctypes.byref(value), 8)
        counter.value += 1

    signal.signal(signal.SIGHUP, restore)
    facts = {
        "counter": ctypes.addressof(counter),
        "holder": holder,
        "main_thread": _thread_state(),
        "ends": ctypes.cast(ctypes.pythonapi.PyErr_Occurred, ctypes.c_void_p).value,
        "slots": [[slot, value.value] for slot, value in saved],
    }
    Path(facts_file).write_text(json.dumps(facts))


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
