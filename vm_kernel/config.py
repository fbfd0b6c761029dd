"""Configuration: traitlets, read from ``vm_kernel_config.py`` on Jupyter's configuration path.

The pool service and the command line read it; the kernel process does not (importing traitlets would cost it
a tenth of its start) and asks the pool service instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traitlets import Bool, Dict, Enum, Float, HasTraits, Int, TraitError, Unicode
from traitlets.config import Config, Configurable
from traitlets.config.loader import ConfigFileNotFound, PyFileConfigLoader

from vm_kernel.errors import ConfigError, UnknownProfile

CONFIG_FILE = "vm_kernel_config.py"
ACCELERATORS = ("auto", "kvm", "tcg")
TRANSPORTS = ("auto", "vsock", "virtio-serial")


@dataclass(frozen=True)
class Profile:
    """What a VM of one profile is like, and how many of them the pool keeps."""

    name: str
    image: str
    memory_mib: int
    vcpus: int
    min_warm: int
    max_vms: int


@dataclass(frozen=True)
class LoadedConfig:
    """The pool's configuration and the files that it came from (none: all defaults)."""

    pool: PoolConfig
    files: list[Path] = field(default_factory=list)


class PoolConfig(Configurable):
    """Settings of the pool service. In ``vm_kernel_config.py``: ``c.PoolConfig.min_warm = 4``."""

    image = Unicode("default", help="Name or digest of the guest image.").tag(config=True)
    vm_memory_mib = Int(384, min=192, max=1 << 20, help="Memory of a VM, in MiB.").tag(config=True)
    vm_vcpus = Int(1, min=1, max=64, help="Virtual CPUs of a VM.").tag(config=True)
    min_warm = Int(2, min=0, max=1000, help="Warm VMs that are kept ready.").tag(config=True)
    max_vms = Int(8, min=1, max=10000, help="VMs at the most, warm and leased together.").tag(config=True)
    profiles = Dict(
        help="More profiles by name; each may set image, memory_mib, vcpus, min_warm, max_vms. What it leaves "
        "out is as above. The profile 'default' is always there.",
    ).tag(config=True)
    accelerator = Enum(ACCELERATORS, "auto", help="auto: KVM if a guest really runs under it.").tag(config=True)
    transport = Enum(TRANSPORTS, "auto", help="auto: vsock if /dev/vhost-vsock can be opened.").tag(config=True)
    libvirt_uri = Unicode(
        "", help="Empty: qemu:///embed in a folder of our own. Otherwise a URI such as qemu:///session."
    ).tag(config=True)
    acquire_timeout_s = Float(
        60.0, min=0.0, help="How long, in seconds, a lease waits for a free VM of a full pool."
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
        }
        if unknown := set(own) - set(values):
            raise ConfigError(
                f"Profile {name!r} has unknown settings: {', '.join(sorted(map(str, unknown)))}.",
                f"Known are {', '.join(values)}; mend c.PoolConfig.profiles in {CONFIG_FILE}.",
            )
        return _checked_profile(name, values | own)

    def all_profiles(self) -> list[Profile]:
        """Every configured profile, 'default' first. Raises ConfigError if one of them is wrong."""
        return [self.profile(name) for name in ("default", *sorted(set(self.profiles) - {"default"}))]


def _checked_profile(name: str, values: dict[str, Any]) -> Profile:
    class Checked(HasTraits):
        image = Unicode(values["image"])
        memory_mib = Int(values["memory_mib"], min=192, max=1 << 20)
        vcpus = Int(values["vcpus"], min=1, max=64)
        min_warm = Int(values["min_warm"], min=0, max=1000)
        max_vms = Int(values["max_vms"], min=1, max=10000)

    try:
        return Profile(name=name, **Checked(**values).trait_values())
    except TraitError as error:
        raise ConfigError(f"Profile {name!r}: {error}", f"Mend it in {CONFIG_FILE}.") from None


def load_config() -> LoadedConfig:
    """Read every ``vm_kernel_config.py`` on Jupyter's configuration path, the most specific last.

    Raises ConfigError that names the file, and the line where there is one.
    """
    from jupyter_core.paths import jupyter_config_path

    merged, files = Config(), []
    for folder in reversed(jupyter_config_path()):
        try:
            merged.merge(PyFileConfigLoader(CONFIG_FILE, path=folder).load_config())
        except ConfigFileNotFound:
            continue
        except BaseException as error:
            raise _broken(Path(folder) / CONFIG_FILE, error) from error
        files.append(Path(folder) / CONFIG_FILE)
    return LoadedConfig(_checked_pool_config(merged, files), files)


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
