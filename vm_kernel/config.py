"""Configuration: traitlets, read from ``vm_kernel_config.py`` on Jupyter's configuration path.

The pool service and the command line read it; the kernel process does not (importing traitlets would cost it
a tenth of its start) and asks the pool service instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traitlets import Bool, Dict, Enum, Float, HasTraits, Int, List, TraitError, Unicode
from traitlets.config import Config
from traitlets.config.loader import ConfigFileNotFound, PyFileConfigLoader

from guest_agent.renew import USUAL
from vm_kernel.config_egress import Egress, EgressSettings, NameList
from vm_kernel.errors import ConfigError, UnknownProfile

CONFIG_FILE = "vm_kernel_config.py"
ACCELERATORS = ("auto", "kvm", "tcg")
TRANSPORTS = ("auto", "vsock", "virtio-serial")
FILE_RULES = ("off", "get", "both")
OUTPUT_POLICIES = ("isolated", "static", "trusted")
#: characters that PoolConfig.preload may have together: a kernel's command line has 2048
MAX_PRELOAD = 1000


class ModuleList(List[Any]):
    """Names of modules, which the template's command line has room for."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Raises TraitError that says which entry is wrong."""
        checked = super().validate(obj, list(value) if isinstance(value, tuple) else value)
        for name in checked or []:
            if not (isinstance(name, str) and name.isascii() and all(map(str.isidentifier, name.split(".")))):
                raise TraitError(f"preload: {name!r} is not the name of a module, such as 'scipy.stats'.")
        if len(",".join(checked or [])) > MAX_PRELOAD:
            raise TraitError(f"preload: the names have more than {MAX_PRELOAD} characters together.")
        return checked


@dataclass(frozen=True)
class Profile:
    """What a VM of one profile is like, and how many of them the pool keeps."""

    name: str
    image: str
    memory_mib: int
    vcpus: int
    min_warm: int
    max_vms: int
    ttl_s: float
    files: str
    outputs: str
    share_memory: bool
    preload: list[str]
    allow: list[str]
    allow_private: list[str]


@dataclass(frozen=True)
class LoadedConfig:
    """The pool's configuration, the files that it came from (none: all defaults), and where they were looked for."""

    pool: PoolConfig
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


class PoolConfig(EgressSettings):
    """Settings of the pool service. In ``vm_kernel_config.py``: ``c.PoolConfig.min_warm = 4``."""

    image = Unicode("default", help="Name or digest of the guest image.").tag(config=True)
    vm_memory_mib = Int(384, min=192, max=1 << 20, help="Memory of a VM, in MiB.").tag(config=True)
    vm_vcpus = Int(1, min=1, max=64, help="Virtual CPUs of a VM.").tag(config=True)
    min_warm = Int(2, min=0, max=1000, help="Warm VMs that are kept ready.").tag(config=True)
    max_vms = Int(8, min=1, max=10000, help="VMs at the most, warm and leased together.").tag(config=True)
    ttl_s = Float(
        86400.0, min=0.0, help="A warm VM that is older than so many seconds is replaced by a new one; 0: never."
    ).tag(config=True)
    profiles = Dict(
        help="More profiles by name; each may set image, memory_mib, vcpus, min_warm, max_vms, ttl_s, files, outputs, "
        "share_memory, preload, allow, allow_private. What it leaves out is as above. There is always the profile "
        "'default'.",
    ).tag(config=True)
    files = Enum(
        FILE_RULES,
        "off",
        help="What notebooks may do with the files below their own folder on the host. off: nothing. get: %vm_get may "
        "add files. both: %vm_put may read files, too. For notebooks that you trust: a notebook that you did not write "
        "could plant a numpy.py beside itself, or show somebody your data.",
    ).tag(config=True)
    outputs = Enum(
        OUTPUT_POLICIES,
        "isolated",
        help="What of a VM's output reaches the browser. isolated: HTML is sanitised, or shown with its scripts in a "
        "sandboxed frame; widgets are ipywidgets' own. static: text and pictures. trusted: everything as it is, with "
        "all the rights that it has in the notebook server's page: for code of your own. Also for each profile.",
    ).tag(config=True)
    share_memory = Bool(
        True,
        help="Whether VMs share the pages of their golden snapshot's memory that they have not changed. A guest could "
        "measure which of them a sibling uses. False: each VM has a copy of all its memory, which takes that much of "
        "the host for each, and longer to fork. Also for each profile.",
    ).tag(config=True)
    preload = ModuleList(
        default_value=list(USUAL),
        help="Modules that are imported in the template, so that each session has them at once: what your notebooks "
        "begin with. What they take of a VM's memory they take in every session. Of numpy, pandas and "
        "matplotlib.pyplot an image without them goes without; any other must be there. Also for each profile.",
    ).tag(config=True)
    prepared = Int(
        1,
        min=0,
        max=64,
        help="Empty QEMUs of each profile in use that wait for a VM to be forked into them, beside max_vms: a refill "
        "takes half as long. 0: none.",
    ).tag(config=True)
    golden_max_age_s = Float(
        7 * 86400.0,
        min=0.0,
        help="A golden snapshot older than so many seconds is built anew in the background: VMs of one snapshot share "
        "the layout of their memory. 0: never.",
    ).tag(config=True)
    health_interval_s = Float(
        30.0, min=0.0, help="Each warm VM is asked every so many seconds whether it is well; 0: never."
    ).tag(config=True)
    health_timeout_s = Float(
        10.0, min=0.1, help="A warm VM that does not answer within so many seconds is replaced."
    ).tag(config=True)
    memory_overcommit = Float(
        2.0,
        min=0.1,
        max=100.0,
        help="How much memory VMs may be promised, for each MiB that the host has free. 1: no VM is started unless "
        "every VM could use all its memory at once. 2: sessions that use half of theirs, on the average, fit.",
    ).tag(config=True)
    memory_reserve_mib = Int(
        256, min=0, max=1 << 20, help="Memory of the host, in MiB, that is never counted on for VMs."
    ).tag(config=True)
    accelerator = Enum(ACCELERATORS, "auto", help="auto: KVM if a guest really runs under it.").tag(config=True)
    transport = Enum(TRANSPORTS, "auto", help="auto: vsock if /dev/vhost-vsock can be opened.").tag(config=True)
    libvirt_uri = Unicode(
        "", help="Empty: qemu:///embed in a folder of our own. Otherwise a URI such as qemu:///session."
    ).tag(config=True)
    acquire_timeout_s = Float(
        60.0, min=0.0, help="How long, in seconds, a lease waits for a free VM of a full pool."
    ).tag(config=True)
    max_queue = Int(200, min=0, max=10000, help="Leases of one profile that may wait at the same time.").tag(
        config=True
    )
    drain_s = Float(
        0.0, min=0.0, help="When the service gets SIGTERM, sessions have so many seconds to end by themselves."
    ).tag(config=True)
    idle_exit_s = Float(900.0, min=0.0, help="The service ends after so many seconds without a lease; 0: never.").tag(
        config=True
    )
    output_stall_s = Float(
        30.0,
        min=0.0,
        help="A client that takes no output for so many seconds, while others wait for it, is cut off until it reads "
        "again; what it misses is announced.",
    ).tag(config=True)
    metrics_port = Int(
        0,
        min=0,
        max=65535,
        help="Port of 127.0.0.1 on which Prometheus finds http://127.0.0.1:PORT/metrics; every user of this host can "
        "read it. 0: none; the pool's socket has the same.",
    ).tag(config=True)
    audit_log = Bool(
        True, help="Write log/audit.log: who had which VM, and what ran in it, as digests; one JSON object a line."
    ).tag(config=True)
    audit_code = Bool(False, help="The audit log has the code of every cell, not only its digest.").tag(config=True)
    audit_max_mib = Float(16.0, min=0.001, max=65536.0, help="Size, in MiB, at which the audit log is begun anew.").tag(
        config=True
    )
    audit_files = Int(8, min=0, max=1000, help="Older audit logs that are kept.").tag(config=True)
    flag_window_s = Float(
        300.0, min=2.0, max=86400.0, help="The last so many seconds, in which a session's CPU time is added up."
    ).tag(config=True)
    flag_cpu_s = Float(
        240.0, min=0.0, help="A session that takes so many seconds of CPU within flag_window_s is flagged; 0: none is."
    ).tag(config=True)
    flag_memory_share = Float(
        0.9, min=0.0, help="A session is flagged when its VM has this share of its memory for itself; 0: none is."
    ).tag(config=True)
    flag_output_mib_per_min = Float(
        100.0, min=0.0, help="A session that puts out so many MiB within a minute is flagged; 0: none is."
    ).tag(config=True)
    checkpoint_disk_mib = Int(
        4096,
        min=0,
        help="Disk, in MiB, that the checkpoints of all sessions may take together (%checkpoint, Sandbox.fork).",
    ).tag(config=True)
    user = Unicode("vm-kernel", help="The user that the service becomes when it is started as root.").tag(config=True)

    def profile(self, name: str) -> Profile:
        """The profile of that name. Raises UnknownProfile, or ConfigError if its settings are wrong."""
        if name != "default" and name not in self.profiles:
            known = ", ".join(sorted({"default", *map(str, self.profiles)}))
            raise UnknownProfile(
                f"There is no profile {name!r}; configured are: {known}.",
                f"Choose one of them, or add {name!r} to c.PoolConfig.profiles in {CONFIG_FILE}.",
            )
        own = self.profiles.get(name, {})
        if not isinstance(own, dict):
            raise ConfigError(
                f"c.PoolConfig.profiles[{name!r}] must be a dictionary, not {type(own).__name__}.",
                f"Mend it in {CONFIG_FILE}.",
            )
        values = {
            "image": self.image,
            "memory_mib": self.vm_memory_mib,
            "vcpus": self.vm_vcpus,
            "min_warm": self.min_warm,
            "max_vms": self.max_vms,
            "ttl_s": self.ttl_s,
            "files": self.files,
            "outputs": self.outputs,
            "share_memory": self.share_memory,
            "preload": self.preload,
            "allow": self.allow,
            "allow_private": self.allow_private,
        }
        if unknown := set(own) - set(values):
            raise ConfigError(
                f"Profile {name!r} has unknown settings: {', '.join(sorted(map(str, unknown)))}.",
                f"Known are {', '.join(values)}; mend c.PoolConfig.profiles in {CONFIG_FILE}.",
            )
        return _checked_profile(name, values | own)

    def egress(self, profile: Profile) -> Egress | None:
        """What sessions of a profile may reach, and how much; None: nothing."""
        if not profile.allow:
            return None
        limits = self.egress_max_connections, self.egress_max_mib, self.egress_idle_s
        return Egress(profile.allow, profile.allow_private, *limits)

    def all_profiles(self) -> list[Profile]:
        """Every configured profile, 'default' first. Raises ConfigError if one of them is wrong."""
        return [self.profile(name) for name in ("default", *sorted(set(self.profiles) - {"default"}))]


class Checked(HasTraits):
    """The bounds of a profile's settings. What it is called, its errors show."""

    image = Unicode()
    memory_mib = Int(192, min=192, max=1 << 20)
    vcpus = Int(1, min=1, max=64)
    min_warm = Int(0, min=0, max=1000)
    max_vms = Int(1, min=1, max=10000)
    ttl_s = Float(0.0, min=0.0)
    files = Enum(FILE_RULES)
    outputs = Enum(OUTPUT_POLICIES)
    share_memory = Bool()
    preload = ModuleList()
    allow = NameList("allow")
    allow_private = NameList("allow_private")


def _checked_profile(name: str, values: dict[str, Any]) -> Profile:
    try:
        return Profile(name=name, **Checked(**values).trait_values())
    except TraitError as error:
        raise ConfigError(f"Profile {name!r}: {error}", f"Mend it in {CONFIG_FILE}.") from None


def load_config(before: LoadedConfig | None = None) -> LoadedConfig:
    """Read every ``vm_kernel_config.py`` on Jupyter's configuration path, the most specific last.

    before: what was loaded when the service started, to look in the same folders again: a service that root started
    has become somebody else since. Raises ConfigError that names the file, and the line where there is one.
    """
    merged, files = Config(), []
    folders = before.folders if before else _folders()
    for folder in folders:
        file = folder / CONFIG_FILE
        try:
            merged.merge(PyFileConfigLoader(CONFIG_FILE, path=str(folder)).load_config())
        except ConfigFileNotFound:
            if before and file in before.files:
                _check_removed(file)
            continue
        except BaseException as error:
            raise _broken(file, error) from error
        files.append(file)
    return LoadedConfig(_checked_pool_config(merged, files), files, folders)


def _folders() -> list[Path]:
    from jupyter_core.paths import jupyter_config_path

    return [Path(folder) for folder in reversed(jupyter_config_path())]


def _check_removed(file: Path) -> None:
    """Raises ConfigError if a file that was there is there still, and we may not look."""
    try:
        file.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(
            f"The configuration file {file} cannot be read by the user who runs the pool service: {error.strerror}.",
            f"Move it to /etc/jupyter/{CONFIG_FILE}; or stop the service, which reads it when it starts.",
        ) from None


def _checked_pool_config(merged: Config, files: list[Path]) -> PoolConfig:
    where = ", ".join(map(str, files)) or CONFIG_FILE
    section = merged.get("PoolConfig", Config())
    if unknown := set(section) - set(PoolConfig.class_traits(config=True)):
        raise ConfigError(
            f"Unknown settings c.PoolConfig.{', c.PoolConfig.'.join(sorted(unknown))} in {where}.",
            f"Known are: {', '.join(sorted(PoolConfig.class_traits(config=True)))}.",
        )
    try:
        config = PoolConfig(config=merged)
        config.all_profiles()
    except TraitError as error:
        raise ConfigError(f"{where}: {error}", "Mend the value and start again.") from None
    return config


def _broken(path: Path, error: BaseException) -> ConfigError:
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f"{path}, line {line}" if line else str(path)
    return ConfigError(
        f"The configuration file {place} cannot be read: {type(error).__name__}: {error}",
        "Mend that line, or move the file away to use the defaults.",
    )
