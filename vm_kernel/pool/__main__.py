"""``python -m vm_kernel.pool``: the pool service. The first kernel starts it; see ``vm_kernel.pool.service``."""

from vm_kernel.pool.main import main

if __name__ == "__main__":
    main()
