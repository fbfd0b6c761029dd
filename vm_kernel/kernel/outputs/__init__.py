"""What of a guest's output reaches the user's browser, where it is shown with the rights of the notebook server.

A front end runs the HTML and JavaScript of a cell's output in its own origin; there they can open a terminal on the
host. So the relay takes every output apart and builds it anew from what is known to be harmless:

* ``rules``: one MIME bundle, by the policy of the session: ``isolated``, ``static`` or ``trusted``
* ``html``, ``markdown``, ``svg``, ``tex``, ``css``: one kind of text each
* ``frame``: whatever cannot be shown as it is gets a sandboxed frame of its own
* ``libraries``: what scripts in frames need of earlier outputs
* ``widgets``: the state of ipywidgets

Messages are taken apart in ``vm_kernel.kernel.gate``. Everything here is pure: text in, text out.
"""
