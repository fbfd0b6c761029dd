"""The pool as a script uses it: many fresh VMs at once, and a look at what there is."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from vm_kernel import ExecutionResult, PooledVM, VMPool
from vm_kernel.errors import UnknownProfile, VMDied


async def test_each_code_gets_a_fresh_vm_and_results_keep_their_order(warm_pool: None) -> None:
    code = "import pathlib, socket; p = pathlib.Path('mark'); print({n}, p.exists(), socket.gethostname()); p.touch()"
    results = await VMPool(at_once=3).map([code.format(n=n) for n in range(6)])
    printed = [result.stdout.split() for result in results if isinstance(result, ExecutionResult)]
    assert [words[:2] for words in printed] == [[str(n), "False"] for n in range(6)]
    assert len({words[2] for words in printed}) == 6


async def test_one_vm_that_ends_does_not_disturb_the_others(warm_pool: None) -> None:
    codes = ["1", "import os; os._exit(3)", "1 / 0", "while True: pass"]
    one, dead, error, late = await VMPool(at_once=2).map(codes, timeout=10)
    assert isinstance(one, ExecutionResult)
    assert one.ok
    assert isinstance(dead, VMDied)
    assert isinstance(error, ExecutionResult)
    assert error.error is not None
    assert error.error.name == "ZeroDivisionError"
    assert isinstance(late, ExecutionResult)
    assert late.status == "timeout"


async def test_the_vms_of_the_pool_are_told(warm_pool: None) -> None:
    pool = VMPool(name="looker")
    async with pool.sandbox() as box:
        assert box.vm is not None
        (vm,) = [vm for vm in await pool.vms() if vm.name == box.vm.name]
        assert isinstance(vm, PooledVM)
        assert (vm.state, vm.kernel_id, vm.profile) == ("leased", "looker", "default")
        assert vm.holder_pid == os.getpid()
        assert vm.created_at.tzinfo is not None
        assert vm.created_at < datetime.now(UTC)
        assert vm.unique_memory_mib is not None
        assert vm.unique_memory_mib > 1


async def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="at_once"):
        VMPool(at_once=0)
    with pytest.raises(UnknownProfile):
        await VMPool("nosuch").run("1")
