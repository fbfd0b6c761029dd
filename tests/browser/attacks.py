"""The collection of attacks on the browser (attacks.toml), and the cells that put them out."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).with_name("attacks.toml")


@dataclass(frozen=True)
class Attack:
    """One of them; attacks.toml says what the fields mean."""

    name: str
    about: str
    code: str
    under_trusted: bool
    act: str = ""
    at: list[str] = field(default_factory=list)
    alone: bool = False
    taken_away: bool = False

    def cell(self, origin: str) -> str:
        """The cell, for a server of that address."""
        return self._filled(self.code, origin)

    def targets(self) -> list[str]:
        """What is acted on, one after the other."""
        return [self._filled(target, "") for target in self.at] or [f'text="{self.name}"']

    def _filled(self, text: str, origin: str) -> str:
        # no quotation marks: it is put between all kinds of them
        xss = f"fetch(`/api/terminals?attack={self.name}`,{{method:`POST`}})"
        for place, value in {
            "{xss}": xss,
            "{url}": f"/api/contents?attack={self.name}",
            "{origin}": origin.rstrip("/"),
            "{name}": self.name,
        }.items():
            text = text.replace(place, value)
        return text


def load() -> tuple[str, list[Attack]]:
    """The cell that comes before all attacks, and these."""
    found = tomllib.loads(FILE.read_text())
    return found["prelude"], [Attack(**entry) for entry in found["attack"]]
