"""Inside ipykernel: what ``%pip install X`` says in a VM without a network, at once instead of after pip's retries.

``launch.py`` puts this module into the kernel's process; ``renew.preload`` calls ``install`` in the template. It stands
in front of IPython's ``%pip`` and leaves alone what needs no package index: other commands, ``--no-index``, what is
installed already, wheels that lie in the VM. With a network interface that is up, or a proxy that the host permits, it
leaves everything alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ADVICE = """\
This virtual machine has no network, so pip cannot reach a package index.
Packages belong into the VM's image. On the host:
  1. list them in requirements.txt and build an image:
       vm-kernel image build --name mine --requirements requirements.txt
  2. in vm_kernel_config.py, make a profile that uses it:
       c.PoolConfig.profiles = {"mine": {"image": "mine"}}
  3. make its kernel known to Jupyter, and choose it for this notebook:
       vm-kernel install --profile mine
A profile may also let its notebooks reach an index, {"allow": ["pypi.org", "files.pythonhosted.org"]}: see the README.
"""
#: the commands of pip that look for packages
_SEEKING = frozenset({"install", "download", "wheel"})
#: options that name an index of the user's own; one on the loopback interface may even answer
_INDEX = frozenset({"-i", "--index-url", "--extra-index-url"})
_CONFIGURATIONS = ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf")
#: options that name other things which may lie in the VM: pip has to look
_ELSEWHERE = frozenset({"-f", "--find-links", "-r", "--requirement", "-e", "--editable", "--group"})
#: further options whose value comes as the next word
_WITH_VALUE = """
-C -c -d -t -w --abi --build-constraint --cache-dir --cert --client-cert --config-settings --constraint --dest
--exists-action --global-option --implementation --keyring-provider --log --no-binary --only-binary --platform --prefix
--progress-bar --proxy --python --python-version --report --resume-retries --retries --root --root-user-action --src
--target --timeout --trusted-host --upgrade-strategy --use-deprecated --use-feature --wheel-dir
"""
_VALUED = _INDEX | _ELSEWHERE | frozenset(_WITH_VALUE.split())
_SYSFS = Path("/sys/class/net")
_UP = 1  # IFF_UP


def install(shell: Any) -> None:
    """Put ourselves in front of the shell's ``%pip``."""
    stock: Callable[[str], None] = shell.find_line_magic("pip")

    @functools.wraps(stock)
    def pip(line: str) -> None:
        words = _words(line)
        if not _seeks(words) or has_network():
            stock(line)
        elif missing := _plainly_missing(words):
            _refuse(shell, f"{', '.join(missing)}: not in this VM.\n")
        else:
            with _in_vain(words):
                stock(line)
            if shell.user_ns.get("_exit_code") == 1:  # 2 would be a command line that makes no sense
                _refuse(shell, "")

    shell.register_magic_function(pip, "line", "pip")


def has_network() -> bool:
    """True if an interface besides loopback is up, or a proxy is set (see renew.use_proxy)."""
    if {"https_proxy", "HTTPS_PROXY"} & os.environ.keys():
        return True
    for interface in _SYSFS.iterdir():
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile; bonding's control file is no interface
            if interface.name != "lo" and int((interface / "flags").read_text(), 16) & _UP:
                return True
    return False


def _refuse(shell: Any, reason: str) -> None:
    """As pip fails in a notebook: no exception, an exit status."""
    print(reason + ADVICE, file=sys.stderr, end="")
    shell.user_ns["_exit_code"] = 1


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # the shell will complain of it
        return []


def _seeks(words: list[str]) -> bool:
    """True if that command line names packages that pip may ask an index for."""
    command, *wanted = [*_arguments(words), ""]
    named = wanted[:-1] or _ELSEWHERE & _options(words)
    return command in _SEEKING and bool(named) and not {"--no-index", "-h", "--help"} & _options(words)


def _plainly_missing(words: list[str]) -> list[str]:
    """The packages that are certainly not to be had; empty if pip has to find out."""
    wanted = list(_arguments(words))[1:]
    if _own_index(words) or _ELSEWHERE & _options(words):
        return []
    missing = [word for word in wanted if "://" in word and "file://" not in word]
    local = [word for word in wanted if word not in missing and ("/" in word or Path(word).exists())]
    return missing if local else missing + [word for word in wanted if word not in missing and not _installed(word)]


def _options(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("-")}


def _arguments(words: list[str]) -> Iterator[str]:
    """The words that are neither options nor their values: the command, then packages."""
    rest = iter(words)
    for word in rest:
        if word in _VALUED:
            next(rest, None)
        elif not word.startswith("-"):
            yield word


def _installed(requirement: str) -> bool:
    """False if it is certain that the requirement is not met."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(requirement)
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except InvalidRequirement:
        return True  # pip says what is wrong with it
    except importlib.metadata.PackageNotFoundError:
        return False


def _own_index(words: list[str]) -> bool:
    return (
        bool(_INDEX & _options(words))
        or bool({"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"} & os.environ.keys())
        or any(Path(path).expanduser().exists() for path in _CONFIGURATIONS)
    )


@contextlib.contextmanager
def _in_vain(words: list[str]) -> Iterator[None]:
    """Have the pip that runs meanwhile try an index of the user's own once, and no other."""
    settings = {"PIP_RETRIES": "0"} if _own_index(words) else {"PIP_RETRIES": "0", "PIP_NO_INDEX": "1"}
    new = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
