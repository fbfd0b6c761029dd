"""The host's end of the guest stream.

What a guest may cost: whatever it sends, a process that listens to it (a kernel process, a program with a ``Sandbox``)
grows by no more than MAX_GROWTH_MIB, and the pool service by 2 MiB a VM that is being made. The limits that add up to
it are MAX_MESSAGE and MAX_JSON_PARTS in ``guest_agent/frames.py``, MAX_VALUES in ``messages.py`` and, for what clients
have not taken yet, those of ``vm_kernel/kernel``. ``tests/hostile_guest`` measures it.
"""

#: see above. The most expensive is a large message while another is on its way to a client that does not read
MAX_GROWTH_MIB = 1024
#: bytes of memory that a received message takes besides its own, about: empty ones are not for nothing
MESSAGE_COST = 256
