"""A disk that is full or may not be written, as an error that names the place. Not here: how much room there is."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vm_kernel.errors import HostError

ROOM_HINT = "Make room there, or set VM_KERNEL_HOME to another place."
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def clear_disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Raises HostError in place of an OSError of the disk: that ``what`` cannot be kept, in ``folder`` or below."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise HostError(f"{what} cannot be kept in {error.filename or folder}: {error.strerror}.", ROOM_HINT) from error
