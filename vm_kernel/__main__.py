"""``python -m vm_kernel``: the kernel process, as Jupyter starts it. The command for people is ``vm-kernel``."""

from __future__ import annotations

import sys

from vm_kernel.kernel.app import main

if __name__ == "__main__":
    sys.exit(main())
