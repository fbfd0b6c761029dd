"""Names of files that travel between host and guest: which are allowed, and which a pattern means. Used by both ends.

A name in a tree is relative, with ``/`` between its components. Neither end trusts the other's names: whoever writes
files checks them again, and then walks them a component at a time without following links.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

MAX_COMPONENT = 255
MAX_NAME = 4096
MAX_DEPTH = 64


class TreeError(Exception):
    """Files cannot be copied. ``path``: which one, as far as it is known."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason = reason
        self.path = path


class Limits(NamedTuple):
    """How much one transfer may carry. max_bytes: of all files together. max_entries: files and folders."""

    max_bytes: int = 2 * 1024**3
    max_entries: int = 100_000


def reason_of(error: OSError) -> str:
    """What the system says, in words. Links are refused with the number of something that is no folder."""
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return "a symbolic link, or no folder, is in its path"
    return os.strerror(error.errno) if error.errno else str(error)


def tree_parts(name: object) -> list[str]:
    """The components of a name in a tree. Raises TreeError unless it stays in the tree and any system can show it."""
    if not isinstance(name, str):
        raise TreeError("a name that is no text")
    parts = name.split("/")
    for part in parts:
        if part in ("", ".", ".."):
            raise TreeError("a name that could lead out of its folder", _shown(name))
        _check_component(part, name)
    _check_length(parts, name)
    return parts


def path_parts(path: str) -> tuple[bool, list[str]]:
    """A path that a user gives: whether it is absolute, and its components (none: the folder itself).

    Raises TreeError. ``..`` is refused rather than resolved: what it means depends on links.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for part in parts:
        if part == "..":
            raise TreeError("a path with '..' in it", _shown(path))
        _check_component(part, path)
    if not path:
        raise TreeError("an empty path")
    _check_length(parts, path)
    return path.startswith("/"), parts


def _check_component(part: str, name: str) -> None:
    try:
        size = len(part.encode(errors="surrogateescape"))
    except UnicodeEncodeError:
        raise TreeError("a name that no file can have", _shown(name)) from None
    if size > MAX_COMPONENT or any(ord(char) < 32 or ord(char) == 127 for char in part):
        raise TreeError("a name with control characters, or too long", _shown(name))


def _check_length(parts: Sequence[str], name: str) -> None:
    if len(parts) > MAX_DEPTH or len(name) > MAX_NAME:
        raise TreeError(f"a path of more than {MAX_DEPTH} folders or {MAX_NAME} characters", _shown(name))


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name[:200])


class Patterns:
    """Shell-like patterns over the names in a tree; ``**`` stands for any number of folders.

    A pattern that means a folder means everything below it. Names that begin with a dot are left out unless
    ``hidden``. Raises TreeError for a pattern that is none.
    """

    def __init__(self, patterns: Sequence[str] = ("**",), hidden: bool = False) -> None:
        self.patterns = tuple(patterns)
        self.hidden = hidden
        self._steps = [_steps(pattern) for pattern in self.patterns]

    def match(self, parts: Sequence[str]) -> bool:
        """Whether the file or folder of that name is meant."""
        if not self.hidden and any(part.startswith(".") for part in parts):
            return False
        return any(_matches(steps, parts) for steps in self._steps)


#: one component of a pattern: what its name must look like; None: any number of folders
_Step = re.Pattern[str] | None


def _matches(steps: list[_Step], parts: Sequence[str]) -> bool:
    """Whether a name, or one of the folders above it, is meant. Linear: whoever chooses names may choose bad ones."""
    last = len(steps)
    places = _reached(steps, {0})
    for part in parts:
        on = {place + 1 for place in places if (step := steps[place]) is not None and step.fullmatch(part)}
        places = _reached(steps, on | {place for place in places if steps[place] is None})
        if last in places:
            return True
    return False


def _reached(steps: list[_Step], places: set[int]) -> set[int]:
    """The places in a pattern, and those behind them that take no component."""
    for place, step in enumerate(steps):
        if step is None and place in places:
            places.add(place + 1)
    return places


def _steps(pattern: str) -> list[_Step]:
    absolute, parts = path_parts(pattern)
    if absolute:
        raise TreeError("a pattern must be relative", _shown(pattern))
    parts = parts or ["**"]
    if parts[-1] == "**":
        parts.append("*")
    try:
        return [None if part == "**" else re.compile(_component(part), re.DOTALL) for part in parts]
    except re.error as error:
        raise TreeError(f"a pattern that means nothing: {error}", _shown(pattern)) from None


def _component(pattern: str) -> str:
    """One component: ``*``, ``?``, ``[abc]``, ``[!abc]``; everything else stands for itself.

    Between two stars stands an atomic group: what follows a star is looked for once, and not tried again further on.
    """
    pieces, at = [""], 0
    while at < len(pattern):
        char = pattern[at]
        end = pattern.find("]", at + 2)
        if char == "[" and end > 0:
            chosen = pattern[at + 1 : end].replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^")
            pieces[-1] += f"[^/{chosen[1:]}]" if chosen[0] == "!" else f"(?!/)[{chosen}]"
            at = end
        elif char == "*":
            pieces.append("")
        else:
            pieces[-1] += "[^/]" if char == "?" else re.escape(char)
        at += 1
    first, *middle = pieces
    if not middle:
        return first
    *middle, last = middle
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle if piece) + "[^/]*" + last
