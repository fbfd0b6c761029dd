"""Jupyter's own conformance tests, with everything that they can ask for, over each kind of connection."""

from __future__ import annotations

from typing import Any, ClassVar

import jupyter_kernel_test
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_kernel_test.msgspec_v5 import validate_message

#: seconds that anything may take on a busy machine
PATIENCE_S = 60.0


class Conformance(jupyter_kernel_test.KernelTests):
    """Every attribute of KernelTests is set, so that nothing is skipped.

    KernelTests waits a tenth of a second for each message that must come, and as long for those that may. Here a
    message that must come is waited for, and what is left over is read up to a mark.
    """

    __test__ = False

    kernel_name = "vm-sandbox"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples: ClassVar = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "import os; os.path.joi", "matches": {"join"}},
        {"text": "%who_l", "matches": {"%who_ls"}},
    ]
    complete_code_samples: ClassVar = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples: ClassVar = ["print('''hello", "def f(x):\n  x*2", "if True:"]
    invalid_code_samples: ClassVar = ["import = 7q", "1 +* 2"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('on purpose')"
    code_execute_result: ClassVar = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
        {"code": "import IPython.display as d; d.HTML('<b>x</b>')", "mime": "text/html", "result": "<b>x</b>"},
    ]
    code_display_data: ClassVar = [
        {"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math(r'\\frac{1}{2}'))", "mime": "text/latex"},
        {"code": "%matplotlib inline\nimport matplotlib.pyplot as p\np.plot([1, 2]);", "mime": "image/png"},
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "range", "search")  # type: ignore[assignment]
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    #: arguments of KernelManager
    connection: ClassVar[dict[str, Any]] = {}

    @classmethod
    def setUpClass(cls) -> None:
        _start(cls)
        cls.kc.start_channels()
        cls.kc.wait_for_ready(timeout=PATIENCE_S)
        _be_patient(cls.kc)

    def flush_channels(self) -> None:
        mark = self.kc.kernel_info()
        for channel, last in ((self.kc.shell_channel, "kernel_info_reply"), (self.kc.iopub_channel, "status")):
            while True:
                message = channel.get_msg(timeout=PATIENCE_S)
                validate_message(message)
                marked = message["parent_header"].get("msg_id") == mark and message["msg_type"] == last
                if marked and message["content"].get("execution_state", "idle") == "idle":
                    break

    def history_helper(self, execute_first: Any, timeout: float | None = PATIENCE_S, **asked: Any) -> dict[str, Any]:
        """IPython calls the session that it is asked in 0, whatever number the question has, and KernelTests expects
        that number: a local ipykernel fails there. So the 0 is checked, and replaced."""
        reply = super().history_helper(execute_first, timeout, **asked)
        if asked["hist_access_type"] == "range":
            history = reply["content"]["history"]
            assert {session for session, _, _ in history} == {0}
            reply["content"]["history"] = [[asked["session"], *rest] for _, *rest in history]
        return reply


def _start(case: Any) -> None:
    """A kernel and a client for a test class that says how they are connected."""
    case.km = KernelManager(kernel_name=case.kernel_name, **case.connection)
    case.km.start_kernel()
    case.kc = case.km.client()


def _be_patient(client: BlockingKernelClient) -> None:
    """Wait longer for what must come: only a failing test notices."""
    get = client.iopub_channel.get_msg
    client.iopub_channel.get_msg = lambda timeout: get(timeout=max(timeout, PATIENCE_S))  # type: ignore[method-assign]


@pytest.mark.usefixtures("kernelspec", "warm_pool")
class TestOverTcp(Conformance):
    __test__ = True


@pytest.mark.usefixtures("kernelspec", "warm_pool")
class TestOverUnixSockets(Conformance):
    __test__ = True
    connection: ClassVar = {"transport": "ipc"}


@pytest.mark.usefixtures("kernelspec", "warm_pool")
class TestEncrypted(Conformance):
    __test__ = True
    connection: ClassVar = {"transport_encryption": "required"}


@pytest.mark.usefixtures("kernelspec", "warm_pool")
class TestWelcome(jupyter_kernel_test.IopubWelcomeTests):
    kernel_name = "vm-sandbox"
    support_iopub_welcome = True
    connection: ClassVar[dict[str, Any]] = {}

    @classmethod
    def setUpClass(cls) -> None:
        _start(cls)


class TestWelcomeOverUnixSockets(TestWelcome):
    connection: ClassVar = {"transport": "ipc"}


class TestWelcomeEncrypted(TestWelcome):
    connection: ClassVar = {"transport_encryption": "required"}
