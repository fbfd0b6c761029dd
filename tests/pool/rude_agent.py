"""A guest agent that says it is warm and then greets the host with random bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from guest_agent import init
from guest_agent.transport import from_command_line

if __name__ == "__main__":
    init.set_up()
    transport = from_command_line(Path("/proc/cmdline").read_text().split())
    init.console("warm")
    connection = transport.accept()
    os.write(connection, os.urandom(4096))
    time.sleep(600)
