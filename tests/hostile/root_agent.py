"""A guest in which anybody can become root: the honest agent, and a Python with root's rights. See tests.hostile."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import guest_agent.honest_agent as honest  # type: ignore[import-not-found]

_honest_set_up = honest.init.set_up


def set_up() -> None:
    """As always; then leave the door open."""
    _honest_set_up()
    door = Path("/usr/local/bin/root-python")
    door.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(sys.executable).resolve(), door)
    door.chmod(0o4755)


if __name__ == "__main__":
    honest.init.set_up = set_up
    honest.main()
