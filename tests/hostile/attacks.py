"""What hostile cells do to their VM, as data: to add one, add an entry to ATTACKS.

Each runs in a throw-away VM for SECONDS at the most (``end`` is when to stop), also as the guest's root, by way of
a program that the tests' guest agent leaves there (``root_agent``). ``tests/pool/test_hostile_cells.py`` runs them all;
``make bench`` those of an ordinary user, and shows what a neighbour feels of each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: how long an attack goes on by itself
SECONDS = 2.0
#: of the tests' images: Python with the rights of the guest's root
ROOT_PYTHON = "/usr/local/bin/root-python"

#: recovers: the cell ends, and so does the next one. ends: the session ends with a message. silent: the VM answers no
#: more, and a restart brings another. A tuple: either, as the guest's kernel happens to decide.
End = Literal["recovers", "ends", "silent"]


@dataclass(frozen=True)
class Attack:
    """One of them. said: a regular expression that the session's last message matches, if it ends."""

    name: str
    code: str
    ends: tuple[End, ...] = ("recovers",)
    said: str = ""
    as_root: bool = False

    @property
    def key(self) -> str:
        """Its name, for programs."""
        return re.sub(r"\W+", "_", self.name).strip("_").lower()

    @property
    def cell(self) -> str:
        """The cell that does it, stopping by itself if it can."""
        code = f"import ctypes, os, time\nend = time.monotonic() + {SECONDS}\n{self.code}"
        if self.as_root:
            code = f"import os\nos.setresgid(0, 0, 0); os.setresuid(0, 0, 0)\n{code}"
            return f"import subprocess\nsubprocess.run([{ROOT_PYTHON!r}, '-c', {code!r}], timeout=60)"
        return code


_RESTARTED = "has panicked, or restarted"
_FORK = """
while time.monotonic() < end:
    try:
        if os.fork() == 0:
            while time.monotonic() < end: pass
            os._exit(0)
    except OSError:
        time.sleep(0.01)
"""
_MEMORY = "blocks = []\nwhile True: blocks.append(bytearray(b'x' * (1 << 24)))"
_DISK = """
for folder in ('/tmp', '/dev/shm', os.path.expanduser('~')):
    try:
        with open(folder + '/filler', 'wb') as file:
            while time.monotonic() < end: file.write(b'x' * (1 << 20))
    except OSError as error:
        print(error)
for folder in ('/tmp', '/dev/shm', os.path.expanduser('~')):
    if os.path.exists(folder + '/filler'): os.unlink(folder + '/filler')
"""
_CPU = """
children = []
for _ in range(8):
    if (pid := os.fork()) == 0:
        while time.monotonic() < end: pass
        os._exit(0)
    children.append(pid)
for pid in children: os.waitpid(pid, 0)
"""
_CONSOLE = """
with open('/dev/ttyS0', 'wb', buffering=0) as console:
    while time.monotonic() < end: console.write(b'x' * 4096)
"""
_STDOUT = "while time.monotonic() < end: print('x' * 10_000)"
_DISPLAY = "from IPython.display import HTML, display\nwhile time.monotonic() < end: display(HTML('<p>' * 100))"
_SOCKETS = """
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (40_000, 40_000))
kept = []
try:
    while len(kept) < 15_000 and time.monotonic() < end: kept.append(socket.socketpair())
except OSError as error:
    print(error)
print(2 * len(kept), 'sockets')
"""
_MODULE = """
libc = ctypes.CDLL(None, use_errno=True)
for data in (b'\\x7fELF' + os.urandom(4096), os.urandom(4096), b''):
    print(libc.syscall(175, data, len(data), b''), os.strerror(ctypes.get_errno()))
"""
_DEV_MEM = """
import mmap
for address in (0, 0xA0000, 0xE0000, 0xF0000, 0xFEE00000, 0xFEC00000, 1 << 27):
    try:
        with open('/dev/mem', 'r+b', buffering=0) as memory, mmap.mmap(memory.fileno(), 4096, offset=address) as page:
            page[:] = os.urandom(4096)
    except (OSError, ValueError) as error:
        print(hex(address), error)
"""
_PCI = """
import glob, random
for path in glob.glob('/sys/bus/pci/devices/*/config'):
    for _ in range(200):
        with open(path, 'r+b', buffering=0) as config:
            config.seek(random.randrange(4, 256)); config.write(os.urandom(1))
"""
_PORTS = """
import random
with open('/dev/port', 'r+b', buffering=0) as ports:
    while time.monotonic() < end:
        port = random.randrange(0x10000)
        if port not in (0x64, 0x92, 0xCF9, 0x604, 0xB004):  # those that restart or end the machine at once
            ports.seek(port); ports.write(os.urandom(1))
"""
_INIT = """
os.kill(1, 9)
with open('/proc/1/maps') as maps, open('/proc/1/mem', 'r+b', buffering=0) as memory:
    for line in maps:
        first, last = (int(word, 16) for word in line.split()[0].split('-'))
        if 'x' in line.split()[1]:
            try:
                memory.seek(first); memory.write(b'\\xcc' * (last - first))
            except OSError: pass
"""
_CLOCK = """
for seconds in (0, 1 << 31, 4_000_000_000, -1):
    try: time.clock_settime(time.CLOCK_REALTIME, seconds)
    except OSError as error: print(error)
"""

ATTACKS = (
    Attack("fork bomb", _FORK, ("recovers", "ends"), "ran out of memory"),
    Attack("fork bomb of root", _FORK, ("recovers", "ends", "silent"), "ran out of memory", as_root=True),
    Attack("memory bomb", _MEMORY, ("ends",), "ran out of memory"),
    Attack("disk filler", _DISK, ("recovers", "ends"), "ran out of memory"),
    Attack("CPU burner", _CPU),
    Attack("stdout flood", _STDOUT),
    Attack("display flood", _DISPLAY),
    Attack("sockets", _SOCKETS, ("recovers", "ends"), "ran out of memory", as_root=True),
    Attack("console flood", _CONSOLE, as_root=True),
    Attack("kernel modules", _MODULE, as_root=True),
    Attack("/dev/mem", _DEV_MEM, ("recovers", "ends", "silent"), _RESTARTED, as_root=True),
    Attack("PCI configuration", _PCI, ("recovers", "ends", "silent"), ".", as_root=True),
    Attack("ports", _PORTS, ("recovers", "ends", "silent"), ".", as_root=True),
    Attack("init overwritten", _INIT, ("ends",), _RESTARTED, as_root=True),
    Attack("clock", _CLOCK, as_root=True),
    Attack("reboot", "ctypes.CDLL(None).reboot(0x01234567)", ("ends",), _RESTARTED, as_root=True),
    Attack("power off", "ctypes.CDLL(None).reboot(0x4321FEDC)", ("ends",), "switched itself off", as_root=True),
    Attack("sysrq restart", "open('/proc/sysrq-trigger', 'w').write('b')", ("ends",), _RESTARTED, as_root=True),
    Attack("sysrq kill all", "open('/proc/sysrq-trigger', 'w').write('i')", ("ends",), "SIGKILL", as_root=True),
)
