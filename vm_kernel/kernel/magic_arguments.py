"""Arguments of host magics: parsed as a command's, with what is wrong said in the cell."""

from __future__ import annotations

import argparse
import shlex
from typing import NoReturn

from vm_kernel.kernel.hostcall import UsageError


class Usage(Exception):
    """The magic is to say how it is used, and nothing else. ``wrong``: because its arguments make no sense."""

    def __init__(self, text: str, wrong: bool) -> None:
        super().__init__(text)
        self.wrong = wrong

    def as_error(self) -> UsageError:
        """For a magic whose cell is to fail then: what comes after it relies on it."""
        return UsageError(str(self))


class Parser(argparse.ArgumentParser):
    """Says what is wrong in the cell, instead of on the process's standard error."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"%{name}", description=description, add_help=False)
        self.add_argument("--help", action="store_true", help="this text")

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{self.format_usage()}{self.prog}: {message}", wrong=True)

    def options(self, arguments: str) -> argparse.Namespace:
        """Raises Usage if there is something wrong with them, or help is wanted."""
        try:
            words = shlex.split(arguments)
        except ValueError as error:
            self.error(str(error))
        if "--help" in words:
            raise Usage(self.format_help().rstrip(), wrong=False)
        return self.parse_args(words)
