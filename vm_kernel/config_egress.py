"""Settings of the way out of a VM: a part of ``PoolConfig``, see config.py. What entries mean is in egress_rules.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from traitlets import Float, Int, List, TraitError
from traitlets.config import Configurable

from vm_kernel.egress_rules import Rules


class Egress(NamedTuple):
    """What the proxy of one session goes by. Travels to whoever holds the lease, as a dictionary."""

    allow: list[str]
    allow_private: list[str]
    max_connections: int
    max_mib: int
    idle_s: float


class NameList(List[Any]):
    """A list whose entries are checked, as ``allow`` or as ``allow_private``."""

    def __init__(self, kind: str, default: list[str] | None = None, **arguments: Any) -> None:
        super().__init__(default_value=default or [], **arguments)
        self._kind = kind

    def validate(self, obj: Any, value: Any) -> Any:
        """Raises TraitError that says which entry is wrong, and what to write."""
        checked = super().validate(obj, list(value) if isinstance(value, tuple) else value)
        try:
            Rules(**{self._kind: checked or []})
        except ValueError as error:
            raise TraitError(f"{self._kind}: {error}.") from None
        return checked


class EgressSettings(Configurable):
    """Which names VMs may reach through the host, and how much of it. Nothing, unless a setting says so."""

    allow = NameList(
        "allow",
        help="Names that VMs may reach, through a proxy on the host: 'pypi.org' (ports 443 and 80), "
        "'*.example.org:8443' (names below it, that port). Empty: VMs have no network. Code in a VM can send what it "
        "knows to whoever is behind these names. Also for each profile.",
    ).tag(config=True)
    allow_private = NameList(
        "allow_private",
        help="Networks such as '10.1.0.0/16' whose addresses an allowed name may have although they are not public: "
        "for an index of your own. Also for each profile.",
    ).tag(config=True)
    egress_max_connections = Int(
        64, min=1, max=256, help="Connections to the network that one session may have at the same time."
    ).tag(config=True)
    egress_max_mib = Int(
        4096, min=0, max=1 << 30, help="MiB that one session may send and receive in all; 0: no limit."
    ).tag(config=True)
    egress_idle_s = Float(
        300.0, min=1.0, max=86400.0, help="A connection without a byte for so many seconds is closed."
    ).tag(config=True)
