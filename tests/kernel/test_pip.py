"""``%pip`` in a VM without a network: a plain message at once, and stock behaviour wherever no index is needed."""

from __future__ import annotations

import pytest

from tests.kernel.session import Session

#: pip needs its time under emulation
pytestmark = pytest.mark.timeout(400)
#: writes a wheel of one module into the home folder
MAKE_WHEEL = """
import zipfile
info = 'tiny-1.0.dist-info'
with zipfile.ZipFile('tiny-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('tiny.py', 'answer = 42')
    wheel.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n')
    wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(f'{info}/RECORD', '')
"""


@pytest.mark.parametrize(
    "line",
    ["%pip install leftpad", "%pip install -q --upgrade 'numpy>=99' leftpad", "%pip download -d /tmp leftpad==1"],
)
async def test_what_only_an_index_has_is_refused_at_once_with_advice(session: Session, line: str) -> None:
    cell = await session.run(
        "import resource\nbefore = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        f"{line}\nprint('goes on', _exit_code, resource.getrusage(resource.RUSAGE_CHILDREN) == before)"
    )
    assert cell.stream("stdout") == "goes on 1 True\n", "no pip has been started, which would take its time"
    said = cell.stream("stderr")
    assert "leftpad" in said
    assert "no network" in said
    assert "vm-kernel image build --name mine --requirements requirements.txt" in said
    assert "vm-kernel install --profile mine" in said


async def test_what_needs_no_index_is_pips_own_business(session: Session) -> None:
    listed = await session.run("%pip list")
    assert "ipykernel" in listed.stream()
    shown = await session.run("%pip show numpy")
    assert "Name: numpy" in shown.stream()
    there = await session.run("%pip install numpy 'pandas>=2'")
    assert "Requirement already satisfied: numpy" in there.stream()
    assert [cell.stream("stderr") for cell in (listed, shown, there)] == ["", "", ""]


async def test_a_wheel_in_the_vm_is_installed(session: Session) -> None:
    await session.run(MAKE_WHEEL)
    await session.run("%pip install ./tiny-1.0-py3-none-any.whl")
    assert (await session.run("import tiny; tiny.answer")).value == "42"
    await session.run("%pip uninstall -q -y tiny")
    await session.run("%pip install -q --no-index --find-links . tiny")
    assert "Version: 1.0" in (await session.run("%pip show tiny")).stream()


async def test_pip_that_fails_for_want_of_an_index_is_explained(session: Session) -> None:
    await session.run("open('requirements.txt', 'w').write('leftpad')")
    cell = await session.run("%pip install -r requirements.txt")
    assert "No matching distribution found for leftpad" in cell.stream("stdout") + cell.stream("stderr")
    assert "Retrying" not in cell.stream("stdout") + cell.stream("stderr")
    assert "no network" in cell.stream("stderr")
    mistaken = await session.run("%pip install --no-such-option")
    assert "no network" not in mistaken.stream("stderr")


async def test_with_a_network_interface_pip_is_left_alone(session: Session) -> None:
    """An interface that the VM lacks is put before the module's eyes."""
    await session.run(
        "import pathlib, sys\n"
        "offline_pip = sys.modules['_vm_kernel_offline_pip']\n"
        "offline_pip._SYSFS = pathlib.Path('net')\n"
        "for name, flags in (('lo', '0x9'), ('eth0', '0x1003')):\n"
        "    pathlib.Path('net', name).mkdir(parents=True)\n"
        "    pathlib.Path('net', name, 'flags').write_text(flags)"
    )
    cell = await session.run("%pip install --retries 0 leftpad")
    assert "no network" not in cell.stream("stderr")
    assert "leftpad" in cell.stream("stdout")
    await session.run("pathlib.Path('net/eth0/flags').write_text('0x1002')")
    assert "no network" in (await session.run("%pip install leftpad")).stream("stderr")
