"""Installs the kernelspec: the folder by which Jupyter finds this kernel. Used by ``vm-kernel install``."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager

import vm_kernel
from vm_kernel.errors import ConfigError, HostError

KERNEL_NAME = "vm-sandbox"


def template_dir() -> Path:
    """The kernelspec's files: in the package of a wheel, beside the package in a checkout."""
    package = Path(vm_kernel.__file__).parent
    for folder in (package / "kernelspec", package.parent / "kernelspec"):
        if (folder / "kernel.json").is_file():
            return folder
    raise HostError("The kernelspec's files are missing from this installation.", "Install vm-kernel again.")


def install(
    user: bool = True,
    prefix: str | None = None,
    name: str = KERNEL_NAME,
    display_name: str | None = None,
    profile: str | None = None,
) -> Path:
    """Write the kernelspec and return its folder. A spec of that name is replaced.

    ``prefix`` (such as ``sys.prefix``) takes precedence over ``user``; with neither it is installed for all users.
    Raises ConfigError for a name that Jupyter does not accept, HostError if the folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "spec"
        shutil.copytree(template_dir(), staged)
        spec = json.loads((staged / "kernel.json").read_text())
        # -P: no file that lies beside a notebook is ever imported on the host
        spec["argv"] = [sys.executable, "-P", "-m", "vm_kernel", "-f", "{connection_file}"]
        if profile:
            spec["argv"] += ["--profile", profile]
            spec["display_name"] += f" ({profile})"
        if display_name:
            spec["display_name"] = display_name
        (staged / "kernel.json").write_text(json.dumps(spec, indent=2) + "\n")
        try:
            installed = KernelSpecManager().install_kernel_spec(
                str(staged), name, user=user and not prefix, prefix=prefix
            )
        except ValueError as error:
            raise ConfigError(str(error), "Choose another --name.") from None
        except OSError as error:
            raise HostError(
                f"The kernelspec cannot be written: {error}.",
                "Install it for yourself (--user) or below a folder of your own (--prefix).",
            ) from None
    return Path(installed)
