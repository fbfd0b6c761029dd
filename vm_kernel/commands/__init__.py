"""The sub-commands of ``vm-kernel``, one module each. Only cli.py imports them.

A module offers ``add_parser(subparsers)``; what a sub-command needs beyond argparse is imported when it runs, so
that ``vm-kernel --help`` is quick and works on a machine where half of the parts are missing.
"""
