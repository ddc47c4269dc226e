"""The subcommands of ``ropescope``."""
