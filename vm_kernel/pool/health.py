"""Which sessions burn more than they should: CPU, memory, output. They are flagged, and nothing else happens to them.

Not here: VMs that do not answer. Those are replaced by the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from vm_kernel.config import PoolConfig
from vm_kernel.pool.session import Flag, Session

#: a flag is taken back when the figure is below this share of its limit, so that it does not flutter
CLEAR_SHARE = 0.9
KINDS = ("cpu", "memory", "output")
_MINUTE_S = 60.0


def trail_s(config: PoolConfig) -> float:
    """For how many seconds a session's past has to be known."""
    return max(config.flag_window_s, _MINUTE_S)


def judge(session: Session, memory_mib: int, config: PoolConfig) -> tuple[list[Flag], list[Flag]]:
    """Bring ``session.flags`` up to date; what was raised and what was cleared. ``memory_mib``: of its VM."""
    raised, cleared = [], []
    for kind, value, limit, text in _figures(session, memory_mib, config):
        flag = session.flags.get(kind)
        if flag is None and value >= limit:
            raised.append(Flag(kind, value, limit, text, datetime.now(UTC).isoformat(timespec="seconds")))
            session.flags[kind] = raised[-1]
        elif flag is not None and value < CLEAR_SHARE * limit:
            cleared.append(session.flags.pop(kind))
        elif flag is not None:
            session.flags[kind] = Flag(kind, value, limit, text, flag.since)
    return raised, cleared


def _figures(session: Session, memory_mib: int, config: PoolConfig) -> Iterator[tuple[str, float, float, str]]:
    """Kind, value, limit, and both in words, of every limit that is configured."""
    last = session.trail[-1]
    if limit := config.flag_cpu_s:
        value = round(last.cpu_s - session.point_at(config.flag_window_s).cpu_s, 1)
        yield "cpu", value, limit, f"{value:g} s of CPU in the last {config.flag_window_s:g} s (limit {limit:g} s)"
    if limit := round(config.flag_memory_share * memory_mib, 1):
        value = round(session.memory / (1 << 20), 1)
        yield "memory", value, limit, f"{value:g} MiB of memory of its own (limit {limit:g} MiB)"
    if limit := config.flag_output_mib_per_min:
        value = round((last.output_bytes - session.point_at(_MINUTE_S).output_bytes) / (1 << 20), 1)
        yield "output", value, limit, f"{value:g} MiB of output in the last minute (limit {limit:g} MiB)"
