"""What travels over the pool's unix socket: one JSON object a line, and once a descriptor. Standard library only.

A client sends one request::

    {"op": "acquire", "profile": "default", "kernel_id": "…"}      a lease; the connection is the lease
    {"op": "acquire", "fork": token, …}                            a lease whose VM begins from another's state
    {"op": "status", "history": false}                              one answer; true: with the last minutes' samples
    {"op": "metrics"}                                               one answer; GET /metrics HTTP/1.1 has one, too
    {"op": "reload"}                                                one answer: the configuration was read anew
    {"op": "stop", "drain_s": 60}                                   one answer, when all VMs have gone

and, while it has a lease, one after the other::

    {"op": "note", "event": "execution", …}                         no answer; see pool/notes.py
    {"op": "checkpoint", "name": …, "keep": bool}                   the guest's agent must have fallen silent (FREEZE)
    {"op": "checkpoints"}
    {"op": "delete_checkpoint", "name": …}                          or a fork's token
    {"op": "rollback", "name": …}                                   answered by another ``lease``
    {"op": "fork"}                                                  a token for others' acquire; FREEZE before it

The service answers with events, each ``{"event": …}``:

    waiting   why the lease is not there yet, to show to a person; any number of them
    lease     the VM's facts, with the descriptor of the guest stream (SCM_RIGHTS)
    vm_gone   the leased VM has ended, and why
    status, metrics, stopped, checkpoint, checkpoints, deleted, fork
    error     an error of vm_kernel.errors by class name, message and hint; outside a lease the last event
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from vm_kernel.errors import PoolRequestError, VMKernelError, from_name

#: bytes of one line; a status of hundreds of VMs is far below
MAX_LINE = 4 * 1024 * 1024
#: bytes of a request
MAX_REQUEST = 64 * 1024
#: bytes of a note; a code that makes it longer is left out of it
MAX_NOTE = 32 * 1024


class VMFacts(NamedTuple):
    """What the holder of a lease may know of its VM."""

    name: str
    profile: str
    accelerator: str
    transport: str
    memory_mib: int
    vcpus: int
    image: str
    image_digest: str
    golden_key: str
    created_at: str
    qemu_version: str
    libvirt_version: str
    warm_ms: float
    acquire_ms: float = 0.0
    #: vsock context id; None over virtio-serial
    cid: int | None = None
    #: PoolConfig.output_stall_s, for the kernel process, which reads no configuration
    output_stall_s: float = 30.0
    #: PoolConfig.audit_code
    audit_code: bool = False
    #: the profile's rule for %vm_put and %vm_get: off, get or both
    files: str = "off"
    #: the profile's output policy: isolated, static or trusted
    outputs: str = "isolated"
    #: why that accelerator, in a sentence or two
    accelerator_reason: str = ""
    #: what this session may reach, the fields of config_egress.Egress; None: VMs of the profile have no network
    egress: dict[str, Any] | None = None


def encode(event: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The object of one line. Raises PoolRequestError if it is not a JSON object."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise PoolRequestError(
            "What came over the pool's socket is not a JSON object.",
            "Only vm-kernel's own programs talk to this socket; see vm_kernel/pool/protocol.py.",
        )
    return fields


def error_event(error: VMKernelError) -> dict[str, Any]:
    """An error as an event."""
    return {"event": "error", "error": type(error).__name__, "message": error.message, "hint": error.hint}


def error_of(event: dict[str, Any]) -> VMKernelError:
    """The error that an event carries."""
    return from_name(str(event.get("error")), str(event.get("message")), str(event.get("hint", "")))
