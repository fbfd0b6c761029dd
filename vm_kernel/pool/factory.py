"""Makes VMs: the one place where images, the hypervisor and the guest handshake come together. Everything blocks.

The pool calls it in its executor, several clones at once.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from vm_kernel import paths
from vm_kernel.config import PoolConfig, Profile
from vm_kernel.errors import CloneError, HostError
from vm_kernel.guest import handshake
from vm_kernel.guest.transport import connect
from vm_kernel.image.initramfs import boot_initrd
from vm_kernel.image.store import Image, open_image
from vm_kernel.vm import checkpoints, host
from vm_kernel.vm.checkpoints import Checkpoint
from vm_kernel.vm.disk import ROOM_HINT, clear_disk_errors
from vm_kernel.vm.golden import GoldenSnapshot, golden_key, load_or_build, prune
from vm_kernel.vm.hypervisor import Hypervisor
from vm_kernel.vm.machine import Machine, PreparedMachine, prepare
from vm_kernel.vm.memory import unique_memory
from vm_kernel.vm.spec import VMSpec

Progress = Callable[[str, float], None]

#: a golden snapshot that nobody has loaded for so long is removed: two weeks
KEEP_GOLDEN_S = 14 * 24 * 3600
#: what libvirt writes for a VM is less
_LEAST_FREE_BYTES = 1 << 20


class Source(NamedTuple):
    """What the VMs of one profile are forked from."""

    profile: str
    image: Image
    golden: GoldenSnapshot


class WarmMachine(NamedTuple):
    """A clone that is unique, answers, and has our connection to its agent."""

    machine: Machine
    stream: socket.socket


class VMFactory:
    """Owns the hypervisor connection of one pool service."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._building = threading.Lock()
        self._hypervisor: Hypervisor | None = None
        self.accelerator: host.Accelerator | None = None
        self.transport: host.Transport | None = None
        self.qemu_version = self.libvirt_version = ""

    def open(self) -> int:
        """Open libvirt and clear what a crashed service left. Returns how many VMs that were. Raises HostError."""
        self.qemu_version, self.libvirt_version = host.qemu_version(), host.libvirt_version()
        self._hypervisor = Hypervisor.open(paths.run_dir() / "lv", self._config.libvirt_uri)
        return self._hypervisor.destroy_leftovers()

    def close(self) -> None:
        """Leave nothing running."""
        if self._hypervisor is not None:
            self._hypervisor.close()
            self._hypervisor = None

    def source(self, profile: Profile, progress: Progress, not_before: datetime | None = None) -> Source:
        """The golden snapshot of a profile, loaded, or built if there is none that fits and is not older.

        Raises ImageError, HostError, GoldenError. One at a time: two profiles may share a snapshot.
        """
        image = open_image(profile.image)
        with self._building, clear_disk_errors("What VMs need", paths.home()):
            self._probe(image, progress)
            spec = self._spec(image, profile)
            golden = load_or_build(self.hypervisor, spec, paths.golden_dir(), progress, not_before)
            try:
                _forget_unused(golden.key)
                self._publish(profile, image)
            except BaseException:
                golden.close()
                raise
        return Source(profile.name, image, golden)

    def fits(self, source: Source, profile: Profile) -> bool:
        """Whether the image, the agent and the settings are still those that the snapshot was made of.

        Raises ImageError, HostError. Called when the configuration was read anew.
        """
        image = open_image(profile.image)
        with self._building, clear_disk_errors("What VMs need", paths.home()):
            spec = self._spec(image, profile)
            key = golden_key(spec, self.hypervisor.facts())
        return key == source.golden.key and spec.share_memory == source.golden.spec.share_memory

    def prepare(self, source: Source, name: str) -> PreparedMachine:
        """Start a QEMU for :meth:`warm_machine` ahead of time. The caller holds the snapshot.

        Raises CloneError; HostError if the disk is full, which libvirt does not say.
        """
        try:
            return prepare(self.hypervisor, source.golden, name)
        except CloneError as error:
            if _free_bytes(paths.run_dir()) < _LEAST_FREE_BYTES:
                raise HostError(f"No space left in {paths.run_dir()}. {error.message}", ROOM_HINT) from error
            raise

    def warm_machine(self, source: Source, name: str, shell: PreparedMachine | None = None) -> WarmMachine:
        """Fork a VM, in ``shell`` if there is one, connect to its agent, make it unique.

        Raises VMError; nothing is left behind then. The caller holds the snapshot (``golden.hold``).
        """
        machine = (shell or self.prepare(source, name)).restore()
        return _connected(machine, lambda stream: handshake.claim(stream, name))

    def restored_machine(
        self, source: Source, name: str, shell: PreparedMachine | None, checkpoint: Checkpoint, same_session: bool
    ) -> WarmMachine:
        """Make a VM that goes on from ``checkpoint``, and connect to its agent, which waits for THAW.

        Raises VMError; nothing is left behind then. The caller holds the snapshot.
        """
        machine = checkpoints.restore(shell or self.prepare(source, name), source.golden, checkpoint)
        return _connected(machine, lambda stream: handshake.reclaim(stream, name, same_session=same_session))

    def abort(self, name: str) -> None:
        """Kill the QEMU of a VM that does not become warm: the thread that makes it gets an error."""
        self.hypervisor.abort(name)

    def memory_mib(self, machine: Machine) -> float | None:
        """Memory of the host that this VM has for itself, in MiB; None if it has ended."""
        try:
            return round(unique_memory(machine.pid) / (1 << 20), 1)
        except OSError:
            return None

    @property
    def hypervisor(self) -> Hypervisor:
        """The open hypervisor. Raises CloneError if the service is on its way out."""
        if self._hypervisor is None:
            raise CloneError("The pool service is stopping.")
        return self._hypervisor

    def _probe(self, image: Image, progress: Progress) -> None:
        if self.transport is None:
            self.transport = host.resolve_transport(self._config.transport)
        if self.accelerator is None:
            progress("checking whether KVM can run a guest", 0.0)
            self.accelerator = host.resolve_accelerator(
                self._config.accelerator, paths.home() / "host-probe.json", image.kernel
            )

    def _spec(self, image: Image, profile: Profile) -> VMSpec:
        assert self.accelerator is not None
        assert self.transport is not None
        new = paths.make_private_dir(paths.home() / "boot") / "new.initrd"
        agent_digest = boot_initrd(image, new)
        # named by content: another agent or image never changes a file that a running VM was started from
        initrd = new.replace(new.with_name(f"{image.digest[:16]}-{agent_digest[:16]}.initrd"))
        return VMSpec(
            kernel=image.kernel,
            initrd=initrd,
            root=image.root,
            image_digest=image.digest,
            agent_digest=agent_digest,
            memory_mib=profile.memory_mib,
            vcpus=profile.vcpus,
            accelerator=self.accelerator.kind,
            transport=self.transport.kind,
            share_memory=profile.share_memory,
            preload=tuple(profile.preload),
        )

    def _publish(self, profile: Profile, image: Image) -> None:
        """Tell kernel processes that have no VM yet what their kernel_info will be."""
        assert self.accelerator is not None
        assert self.transport is not None
        facts: dict[str, Any] = {
            "kernel_info": image.manifest.kernel_info,
            "image": image.name,
            "accelerator": self.accelerator.kind,
            "transport": self.transport.kind,
            "outputs": profile.outputs,
        }
        _write_facts(profile.name, facts)


def publish_policy(profile: Profile) -> None:
    """Tell the same when the profile's output policy may have changed."""
    with suppress(FileNotFoundError):
        facts = json.loads(paths.profile_facts(profile.name).read_text())
        _write_facts(profile.name, facts | {"outputs": profile.outputs})


def _write_facts(name: str, facts: dict[str, Any]) -> None:
    target = paths.profile_facts(name)
    new = target.with_suffix(".new")
    new.write_text(json.dumps(facts))
    new.replace(target)


def _connected(machine: Machine, greet: Callable[[socket.socket], object]) -> WarmMachine:
    """Connect to the agent of a VM that runs and ``greet`` it. If that fails, the VM goes."""
    try:
        stream = connect(machine.channel_path, machine.cid)
        try:
            greet(stream)
            if not machine.alive:  # its CID may belong to somebody else's VM by now, and so may the stream
                raise CloneError(f"{machine.name} ended while it was made.")
        except BaseException:
            stream.close()
            raise
    except BaseException:
        machine.destroy()
        raise
    return WarmMachine(machine, stream)


def _forget_unused(key: str) -> None:
    """Note that ``key`` is in use, and remove snapshots that have not been for long: each is hundreds of megabytes."""
    folder = paths.golden_dir()
    os.utime(folder / key)
    oldest = time.time() - KEEP_GOLDEN_S
    prune(folder, {key} | {entry.name for entry in folder.iterdir() if entry.stat().st_mtime > oldest})


def _free_bytes(folder: Path) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize
