"""One exception tree for the whole project. Each class says whose fault it is.

::

    VMKernelError
     +-- ConfigError             the user's configuration or command line is wrong
     |    +-- UnknownProfile     ... it names a profile that is not configured
     +-- HostError               this machine lacks something (QEMU, libvirt's driver, KVM, memory, disk)
     +-- ImageError              a guest image is missing, damaged, or could not be built
     +-- FilesystemError         a file cannot be copied between host and guest; which one is in ``path``
     +-- SandboxClosed           the program uses a sandbox that has no VM (any more)
     +-- VMError                 one virtual machine failed
     |    +-- GoldenError        ... while its golden snapshot was built or loaded
     |    +-- CloneError         ... while it was forked from the golden snapshot
     |    +-- CheckpointError    ... while a checkpoint of it was saved, found or brought back
     |    +-- VMDied             ... while a session used it
     |    +-- GuestProtocolError ... the guest sent what our protocol does not allow
     +-- PoolError               the pool service
          +-- PoolUnavailable    ... cannot be started or reached
          +-- PoolFull           ... has no VM to give, now
          +-- PoolRequestError   ... was asked for something that it does not understand

An error has a message (what happened and what it means for the user) and a ``hint`` (what to do next). It
crosses the pool's socket by class name, see :func:`from_name`.
"""

from __future__ import annotations


class VMKernelError(Exception):
    """Base of all errors that this project raises on purpose."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[VMKernelError], tuple[str, ...]]:
        return type(self), (self.message, self.hint)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(VMKernelError):
    """The user's configuration or command line is wrong."""


class UnknownProfile(ConfigError):
    """A profile was named that is not configured."""


class HostError(VMKernelError):
    """This machine lacks something that a VM needs."""


class ImageError(VMKernelError):
    """A guest image is missing, damaged, or could not be built."""


class FilesystemError(VMKernelError):
    """A file cannot be copied between host and guest. ``path``: which one; empty if it is none in particular."""

    def __init__(self, message: str, hint: str = "", path: str = "") -> None:
        super().__init__(message, hint)
        self.path = path

    def __reduce__(self) -> tuple[type[VMKernelError], tuple[str, ...]]:
        return type(self), (self.message, self.hint, self.path)


class SandboxClosed(VMKernelError):
    """A program uses a sandbox that has no VM, or has none any more."""


class VMError(VMKernelError):
    """One virtual machine failed."""


class GoldenError(VMError):
    """A golden snapshot could not be built or loaded."""


class CloneError(VMError):
    """A VM could not be forked from its golden snapshot."""


class CheckpointError(VMError):
    """A checkpoint could not be saved, found or brought back. The session goes on as it was."""


class VMDied(VMError):
    """A VM went away while a session used it."""


class GuestProtocolError(VMError):
    """The guest sent bytes that the protocol does not allow. The VM is not to be used any more."""


class PoolError(VMKernelError):
    """The pool service failed."""


class PoolUnavailable(PoolError):
    """The pool service cannot be started or reached."""


class PoolFull(PoolError):
    """The pool has no VM to give, now."""


class PoolRequestError(PoolError):
    """The pool service was asked for something that it does not understand."""


def _tree(root: type[VMKernelError]) -> dict[str, type[VMKernelError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def from_name(name: str, message: str, hint: str = "") -> VMKernelError:
    """Rebuild an error that crossed the pool's socket; an unknown class name gives a plain PoolError."""
    return _tree(VMKernelError).get(name, PoolError)(message, hint)
