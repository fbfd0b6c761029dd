"""The pool service: golden snapshots, warm VMs and leases. ``client`` is what everybody else may import."""
