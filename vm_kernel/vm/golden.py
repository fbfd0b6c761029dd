"""Golden snapshots: a template VM that was booted once, warm, kept as an image of its RAM plus its device state.

The RAM image is a sealed memfd of this process: clones map it privately, and none of them could write to it even if
it tried. A copy on disk, with digests, refills the memfd after a restart of the service (``ram_file``).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from vm_kernel.errors import GoldenError, HostError, VMError
from vm_kernel.vm import ram_file
from vm_kernel.vm.disk import clear_disk_errors
from vm_kernel.vm.domain_xml import Role, domain_xml
from vm_kernel.vm.host import cpu_model
from vm_kernel.vm.hypervisor import Hypervisor
from vm_kernel.vm.memory import available_mib
from vm_kernel.vm.monitor import Monitor
from vm_kernel.vm.process import QemuProcess
from vm_kernel.vm.spec import VMSpec

#: progress(stage, fraction of the whole between 0 and 1); called from the thread that builds.
Progress = Callable[[str, float], None]

#: Seconds that a template may take to become warm. Emulated on a busy machine it takes a minute.
WARM_TIMEOUT_S = 300.0
_WARM, _FAILED = b"vm-kernel: warm", (b"vm-kernel: failed:", b"vm-kernel: init failed:", b"Kernel panic")
#: What a template needs of the host beside its RAM.
_OVERHEAD_MIB = 128
_SETTLE_S = 0.3
#: A template that says more on its console is given up; an honest one says some hundred bytes.
_MAX_CONSOLE_BYTES = 256 << 10
_FORMAT = 2


class GoldenSnapshot:
    """A snapshot that clones can be made from. The pool keeps one for each profile, and closes it at the end.

    key: hash of everything that the state depends on. folder: where its files are (``<given folder>/<key>``).
    build_id: names this very RAM image: a rotation gives a key a new one. created_at: when its template was saved.
    memfd: the sealed RAM image. state: device state. built: whether it was built just now, not loaded.
    """

    def __init__(
        self, key: str, spec: VMSpec, folder: Path, memfd: int, state: bytes, manifest: dict[str, Any], built: bool
    ) -> None:
        self.key = key
        self.build_id = str(manifest["ram_sha256"])[:16]
        self.created_at = datetime.fromtimestamp(float(manifest["created_at"]), UTC)
        self.spec = spec
        self.folder = folder
        self.memfd = memfd
        #: by which the image is known in the memory map of a QEMU, even when it has been closed here
        self.ram_inode = os.fstat(memfd).st_ino
        self.state = state
        self.built = built
        self._guard = threading.Lock()
        self._users = 0
        self._given_up = False

    @property
    def ram_path(self) -> Path:
        """What QEMU opens to map the RAM image: it runs as our user, so it may."""
        return Path(f"/proc/{os.getpid()}/fd/{self.memfd}")

    def hold(self) -> None:
        """Keep the RAM image until release(), even if it is closed meanwhile: for a clone in the making, a checkpoint.

        Raises GoldenError if it is gone already. Callable from any thread.
        """
        with self._guard:
            if self.memfd < 0:
                raise GoldenError("The golden snapshot has been given up.")
            self._users += 1

    def release(self) -> None:
        """End what hold() began."""
        with self._guard:
            self._users -= 1
            self._let_go()

    def close(self) -> None:
        """Give the RAM image back, as soon as nobody holds it. Running clones have their own mapping. Idempotent."""
        with self._guard:
            self._given_up = True
            self._let_go()

    def _let_go(self) -> None:
        if self._given_up and not self._users and self.memfd >= 0:
            memfd, self.memfd = self.memfd, -1
            os.close(memfd)


def golden_key(spec: VMSpec, facts: Mapping[str, str]) -> str:
    """The name of the snapshot for this spec on this host. ``facts`` is :meth:`Hypervisor.facts`."""
    anywhere = VMSpec(**{**vars(spec), "kernel": Path("kernel"), "initrd": Path("initrd"), "root": Path("root")})
    role = Role(boot=True, ram_path=Path("ram"), ram_shared=True, console_log=Path("console"), channel=None)
    depends_on: dict[str, Any] = {
        "format": _FORMAT,
        "image": spec.image_digest,
        "agent": spec.agent_digest,
        "domain": domain_xml(anywhere, role, "template", UUID(int=0), UUID(int=0)),
        **facts,
    }
    if spec.accelerator == "kvm":
        depends_on |= {"kernel": os.uname().release, "cpu": cpu_model()}
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]


def load_or_build(
    hv: Hypervisor, spec: VMSpec, folder: Path, progress: Progress, not_before: datetime | None = None
) -> GoldenSnapshot:
    """The snapshot of ``spec``: loaded from ``folder`` (checked), or built anew if missing, stale or damaged.

    not_before: one that is older is built anew, and replaced when that is done (a rotation; it stays if that fails).
    Building boots a template VM (some 10 to 40 s under emulation). Raises GoldenError, or HostError if disk or memory
    are full; nothing half-made is left. Called by the pool when a profile is first wanted; two calls for the same
    spec must not run at once.
    """
    key = golden_key(spec, hv.facts())
    with clear_disk_errors("The golden snapshot", folder):
        if (folder / key).exists():
            progress("loading the golden snapshot", 0.0)
            try:
                found = _load(key, spec, folder / key)
                if not_before is None or found.created_at >= not_before:
                    return found
                found.close()
            except GoldenError:
                shutil.rmtree(folder / key)
        return _build(hv, key, spec, folder, progress, replace=not_before is not None)


def prune(folder: Path, keep: set[str]) -> list[str]:
    """Remove the snapshots whose key is not in ``keep``, and what killed builds left. Returns the removed names.

    For the pool service to call when it knows the keys of all its profiles: an upgrade of image, agent or QEMU leaves
    snapshots that nothing can use any more.
    """
    removed = []
    for entry in sorted(folder.iterdir()) if folder.exists() else ():
        if entry.is_dir() and entry.name not in keep and not _being_built(entry.name):
            shutil.rmtree(entry, ignore_errors=True)
            removed.append(entry.name)
    return removed


def _being_built(name: str) -> bool:
    return name.startswith(".") and Path("/proc", name.rpartition("-")[2]).exists()


def _load(key: str, spec: VMSpec, folder: Path) -> GoldenSnapshot:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        state = (folder / "state").read_bytes()
        if hashlib.sha256(state).hexdigest() != manifest["state_sha256"]:
            raise GoldenError("its device state is damaged")
        memfd = ram_file.new_memfd(spec.memory_mib << 20)
        try:
            if ram_file.load(folder / "ram", memfd) != manifest["ram_sha256"]:
                raise GoldenError("its RAM image is damaged")
            ram_file.seal(memfd)
            return GoldenSnapshot(key, spec, folder, memfd, state, manifest, built=False)
        except BaseException:
            os.close(memfd)
            raise
    except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise GoldenError(f"it is incomplete: {error}") from error


def _build(
    hv: Hypervisor, key: str, spec: VMSpec, folder: Path, progress: Progress, *, replace: bool
) -> GoldenSnapshot:
    _check_memory(spec)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = folder / f".{key}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    memfd = ram_file.new_memfd(spec.memory_mib << 20)
    try:
        state = _run_template(hv, key, spec, memfd, progress)
        ram_file.seal(memfd)
        progress("writing the golden snapshot", 0.92)
        (draft / "state").write_bytes(state)
        manifest = {
            "key": key,
            "ram_sha256": ram_file.save(memfd, draft / "ram"),
            "state_sha256": hashlib.sha256(state).hexdigest(),
            "created_at": time.time(),
        }
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _keep(draft, folder / key, replace=replace)
    except BaseException:
        os.close(memfd)
        shutil.rmtree(draft, ignore_errors=True)
        raise
    progress("the golden snapshot is ready", 1.0)
    return GoldenSnapshot(key, spec, folder / key, memfd, state, manifest, built=True)


def _keep(draft: Path, target: Path, *, replace: bool) -> None:
    """Give a finished snapshot its name. Another service of the same folder may have been quicker: theirs stays."""
    old = draft.with_name(f".{target.name}-old-{os.getpid()}")
    if replace and target.exists():
        target.rename(old)
    try:
        draft.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(draft)
    shutil.rmtree(old, ignore_errors=True)


def _run_template(hv: Hypervisor, key: str, spec: VMSpec, memfd: int, progress: Progress) -> bytes:
    """Boot the template until it is warm, pause it, and return its device state. Its RAM is then in ``memfd``."""
    name = f"golden-{key[:8]}"
    console, state = hv.vm_dir / f"{name}.console", hv.vm_dir / f"{name}.state"
    ram = Path(f"/proc/{os.getpid()}/fd/{memfd}")
    role = Role(boot=True, ram_path=ram, ram_shared=True, console_log=console, channel=None)
    console.unlink(missing_ok=True)
    console.touch(mode=0o600)  # QEMU would make it for others to read
    said = ""
    try:
        xml = domain_xml(spec, role, name, uuid4(), uuid4())
        domain, qemu = hv.start(name, xml)
        try:
            domain.resume()
            _wait_until_warm(qemu, console, progress)
            progress("saving the template", 0.9)
            domain.suspend()
            Monitor(domain).save_devices(state)
            return state.read_bytes()
        finally:
            said = hv.last_words(name)
            hv.destroy(name, domain, qemu)
    except GoldenError:
        raise
    except Exception as error:  # libvirtError is imported late, and is the usual one here
        reason = error.message if isinstance(error, VMError) else str(error)
        said = said or hv.last_words(name)
        raise GoldenError(f"The template VM could not be started or saved: {reason}{said}") from error
    finally:
        for left in (console, state):
            left.unlink(missing_ok=True)
        hv.log_file(name).unlink(missing_ok=True)


def _wait_until_warm(qemu: QemuProcess, console: Path, progress: Progress) -> None:
    """Follow the console until the agent says that the guest is warm. Raises GoldenError with its last lines."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < WARM_TIMEOUT_S:
        alive = qemu.alive
        said = console.read_bytes() if console.exists() else b""
        lines = said.replace(b"\r", b"").split(b"\n")
        if any(line.startswith(_WARM) for line in lines):
            time.sleep(_SETTLE_S)  # the line is out before the guest has gone idle
            return
        failed = [line for line in lines if any(mark in line for mark in _FAILED)]
        flooded = len(said) >= _MAX_CONSOLE_BYTES
        if failed or flooded or not alive:
            ended = f"it wrote more than {_MAX_CONSOLE_BYTES >> 10} KiB on its console" if flooded else "it ended"
            reason = failed[0] if failed else ended.encode()
            raise GoldenError(f"The template VM did not become warm: {_text(reason)}{_tail(lines)}")
        # How long a boot takes is not known; a fraction that approaches its end shows that something happens.
        progress("booting the template VM", 0.9 * (1 - math.exp(-waited / 10)))
        time.sleep(0.05)
    raise GoldenError(f"The template VM did not become warm within {WARM_TIMEOUT_S:.0f} s{_tail(lines)}")


def _text(line: bytes) -> str:
    return line.decode(errors="replace").strip()[:300]


def _tail(lines: list[bytes]) -> str:
    words = [text for line in lines[-12:] if (text := _text(line))]
    return "\nIts console ended with:\n  " + "\n  ".join(words) if words else ". Its console said nothing."


def _check_memory(spec: VMSpec) -> None:
    """Raises HostError if the host has not the memory for a template: better than the OOM killer's choice."""
    if (available := available_mib()) < spec.memory_mib + _OVERHEAD_MIB:
        raise HostError(
            f"A VM of {spec.memory_mib} MiB needs more memory than this host has free ({available} MiB).",
            "Free some memory, or set c.PoolConfig.vm_memory_mib to less.",
        )
