"""The guest agent: everything of ours that runs inside the virtual machine.

It is copied into the guest image and runs on the guest's Python with the standard library and pyzmq. The host
imports from it what both ends must agree on: frames, names of files, the copying of trees, defaults.
"""
