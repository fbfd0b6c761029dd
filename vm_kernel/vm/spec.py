"""What a virtual machine is made of: the value that golden snapshots and clones are derived from.

Not here: how it is written for libvirt (``domain_xml``), nor what the host can do (``host``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

AcceleratorKind = Literal["kvm", "tcg"]
TransportKind = Literal["vsock", "virtio-serial"]

#: The guest sees the host's end of the virtio-serial channel as /dev/virtio-ports/<this>.
CHANNEL_NAME = "org.vmsandbox.agent"


@dataclass(frozen=True)
class VMSpec:
    """One kind of VM. The pool makes one for each profile, from the image and the host's abilities.

    ``initrd`` is the image's initrd with the guest agent appended; ``agent_digest`` names that agent.
    ``image_digest`` names the content of kernel, initrd and root, so that they need not be hashed here.
    ``preload``: modules that the template imports, as many as a kernel's command line has room for.
    ``share_memory``: a clone shares the pages of the golden snapshot that it has not changed; else it copies them all.
    """

    kernel: Path
    initrd: Path
    root: Path
    image_digest: str
    agent_digest: str
    memory_mib: int
    vcpus: int
    accelerator: AcceleratorKind
    transport: TransportKind
    share_memory: bool = True
    preload: tuple[str, ...] = ()
