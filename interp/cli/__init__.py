"""The command ``ropescope``; heavy imports wait inside the commands, so that --help is quick.

May import: everything.
"""

from interp.cli.command import main

__all__ = ["main"]
