"""The Jupyter side: sockets, relay, host magics. One such process a notebook session.

``app`` is the entry point. What is imported at its start is chosen with care: see ``app.main``.
"""
