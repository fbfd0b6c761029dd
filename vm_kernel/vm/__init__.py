"""The VM layer: libvirt, golden snapshots, clones. It knows nothing of pools, leases or Jupyter."""

import os

# libvirt reads it when it is first imported, which is somewhere below here. Its default is to print a warning for every
# argument of QEMU that is ours and not libvirt's: three lines a VM.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:stderr")
