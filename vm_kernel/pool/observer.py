"""Whoever watches the pool service: one object that the service tells what happens. It never decides anything.

What it is told ends up in metrics (``prometheus``), the audit log (``audit``), flags (``health``) and charts
(``history``).
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from vm_kernel import paths
from vm_kernel.errors import PoolRequestError, VMKernelError
from vm_kernel.pool import health
from vm_kernel.pool.audit import AuditLog
from vm_kernel.pool.history import EVERY_S, History, Sample
from vm_kernel.pool.http import MetricsPort
from vm_kernel.pool.notes import Allowance, Note, parse_note
from vm_kernel.pool.peer import Peer, peer_of
from vm_kernel.pool.prometheus import Metrics
from vm_kernel.pool.session import Session
from vm_kernel.pool.state import PooledVM, VMState
from vm_kernel.vm.memory import host_available_mib
from vm_kernel.vm.usage import Usage, usage_of

if TYPE_CHECKING:
    from vm_kernel.pool.service import PoolService

#: characters of a message or an operation's name in the audit log
_MAX_WORDS = 300
#: seconds from the begin of a lease to the first look at what its VM uses
_LOOK_DELAY_S = 0.01


class Observer:
    """Lives as long as the service. Everything is called on its event loop; nothing raises."""

    def __init__(self, service: PoolService) -> None:
        config = service.config
        self.audit = AuditLog(
            paths.audit_log(), int(config.audit_max_mib * (1 << 20)), config.audit_files, config.audit_log
        )
        self.history = History()
        #: by lease id
        self.sessions: dict[str, Session] = {}
        self.metrics = Metrics(service, self)
        self.port = MetricsPort(config.metrics_port, self.metrics.text) if config.metrics_port else None
        self._service = service
        self._refusals = Allowance()
        self._acquires = 0
        self._sampling: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()

    async def start(self) -> None:
        """The service listens."""
        if self.port is not None:
            await self.port.start()
        self._sampling = asyncio.create_task(self._keep_sampling())

    def close(self) -> None:
        """The service ends; sessions may still end after that."""
        if self.port is not None:
            self.port.close()
        if self._sampling is not None:
            self._sampling.cancel()

    # ---- what happens to leases

    def lease_begins(self, connection: socket.socket, vm: PooledVM, seconds: float) -> Session:
        """A client has got its VM, ``seconds`` after it asked."""
        holder = vm.holder
        session = Session(vm, peer_of(connection), holder.kernel_id if holder is not None else "")
        self.sessions[session.id] = session
        session.mark(0.0)
        # not at once: others may be waiting for their VM
        asyncio.get_running_loop().call_later(_LOOK_DELAY_S, self._look_at, session)
        spec = vm.source.golden.spec if vm.source is not None else None
        facts = {"memory_mib": spec.memory_mib, "vcpus": spec.vcpus, "accelerator": spec.accelerator} if spec else {}
        self.audit.write("lease", **session.ids, acquire_ms=round(1000 * seconds, 3), **facts)
        return session

    def note(self, session: Session, request: dict[str, Any]) -> None:
        """The client tells something about its session. What it should not say is counted and has no effect."""
        if not session.allowance.take():
            self._drop(session, "rate")
            return
        try:
            note = parse_note(request)
        except PoolRequestError:
            self._drop(session, "invalid")
            return
        self._noted(session, note)

    def action(self, session: Session, action: str, /, **facts: Any) -> None:
        """The service has done a checkpoint, rollback or fork for a session; ``facts`` go to the audit log."""
        session.checkpoints += action == "checkpoint"
        self.metrics.checkpoints.labels(session.vm.profile, action).inc()
        self.audit.write(action, **session.ids, **facts)

    def lease_ends(self, session: Session, cause: str) -> None:
        """A lease has ended; its VM may still be there, and is about to be destroyed."""
        if self.sessions.pop(session.id, None) is None:
            return
        self._look_at(session)
        dropped = {"notes_dropped": session.notes_dropped} if session.notes_dropped else {}
        self.audit.write("release", **session.ids, cause=cause, **session.totals, **dropped)

    def refused(
        self, peer: Peer, request: dict[str, Any] | None, error: VMKernelError, session: Session | None = None
    ) -> None:
        """A request, None if it could not be read, ended in an error; ``session``: of the lease that it belongs to."""
        self.metrics.refused.labels(type(error).__name__).inc()
        if self._refusals.take():
            operation = str((request or {}).get("op", ""))[:_MAX_WORDS]
            whose = session.ids if session is not None else {"client_pid": peer.pid, "uid": peer.uid}
            what = {"op": operation, "error": type(error).__name__, "message": error.message[:_MAX_WORDS]}
            self.audit.write("refused", **whose, **what)

    def session_of(self, vm: PooledVM) -> Session | None:
        """The session that has a VM."""
        return next((session for session in self.sessions.values() if session.vm is vm), None)

    def _drop(self, session: Session, reason: str) -> None:
        session.notes_dropped += 1
        self.metrics.notes_dropped.labels(reason).inc()

    def _noted(self, session: Session, note: Note) -> None:
        fields, profile = note.fields, session.vm.profile
        if new := fields.pop("new_output_bytes", 0):
            session.output_bytes += new
            self.metrics.output_bytes.labels(profile).inc(new)
        if note.event == "execution":
            session.executions += 1
            self.metrics.executions.labels(profile, fields["status"]).inc()
            self.metrics.execution_seconds.labels(profile).observe(fields["ms"] / 1000)
            if not self._service.config.audit_code:
                fields.pop("code", None)
        elif note.event == "files":
            session.file_bytes += fields["bytes"]
            self.metrics.file_bytes.labels(profile, fields["action"]).inc(fields["bytes"])
        elif note.event == "egress":
            self.metrics.egress.labels(profile, fields["verdict"]).inc()
            if fields["verdict"] == "closed":
                self.metrics.egress_bytes.labels(profile, "sent").inc(fields["sent_bytes"])
                self.metrics.egress_bytes.labels(profile, "received").inc(fields["received_bytes"])
            self._log.info("egress", **session.ids, **fields)
        if note.event != "output":
            self.audit.write(note.event, **session.ids, **fields)

    # ---- samples

    async def _keep_sampling(self) -> None:
        while True:
            try:
                await self._sample()
            except Exception:
                self._log.exception("sampling_failed")
            await asyncio.sleep(EVERY_S)

    async def _sample(self) -> None:
        pools = list(self._service.pools.values())
        machines = {vm: vm.machine.pid for pool in pools for vm in pool.vms if vm.machine is not None}
        usages, host_mib = await asyncio.get_running_loop().run_in_executor(None, _read, machines)
        acquires, self._acquires = self._acquires, self._service.acquire_times.count
        self.history.add(
            Sample(
                warm=sum(pool.count(VMState.WARM) for pool in pools),
                leased=sum(pool.count(VMState.LEASED) + pool.count(VMState.CHECKPOINTING) for pool in pools),
                waiting=sum(pool.waiting for pool in pools),
                host_mib=host_mib,
                own_mib=sum(usage.memory for usage in usages.values()) >> 20,
                acquire_ms=max(self._service.acquire_times.latest(self._acquires - acquires), default=None),
            )
        )
        for session in list(self.sessions.values()):
            if (usage := usages.get(session.vm)) is not None:
                session.used(machines[session.vm], usage)
            self._judge(session)

    def _judge(self, session: Session) -> None:
        config, source = self._service.config, session.vm.source
        session.mark(health.trail_s(config))
        raised, cleared = health.judge(session, source.golden.spec.memory_mib if source is not None else 0, config)
        for state, flags in (("raised", raised), ("cleared", cleared)):
            for flag in flags:
                facts = {"flag": flag.kind, "state": state, "value": flag.value, "limit": flag.limit}
                self._log.warning("flag", **session.ids, **facts)
                self.audit.write("flag", **session.ids, **facts)

    def _look_at(self, session: Session) -> None:
        machine = session.vm.machine
        if machine is not None and (usage := usage_of(machine.pid)) is not None:
            session.used(machine.pid, usage)


def _read(machines: dict[PooledVM, int]) -> tuple[dict[PooledVM, Usage], int]:
    """In a thread: of every VM that is there what it uses, and the host's memory in MiB."""
    usages = {}
    for vm, pid in machines.items():
        with suppress(OSError):
            if (usage := usage_of(pid)) is not None:
                usages[vm] = usage
    return usages, host_available_mib()
