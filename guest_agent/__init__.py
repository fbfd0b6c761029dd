"""The guest agent: everything of ours that runs inside the virtual machine.

It is copied into the guest image and runs on the guest's Python with the standard library and pyzmq. The host
imports ``guest_agent.frames`` alone, so that both ends share one definition of the frame format.
"""
