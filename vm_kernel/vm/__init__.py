"""The VM layer: libvirt, golden snapshots, clones. It knows nothing of pools, leases or Jupyter."""

import os

# libvirt reads it when it is first imported, which is somewhere below here. What goes wrong it also tells its caller;
# its log has more: warnings that some of QEMU's arguments are ours, three a VM, and "errors" that are expected.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
