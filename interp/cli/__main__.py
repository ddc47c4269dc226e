"""``python -m interp.cli`` is the command ``ropescope``."""

from interp.cli.command import main

if __name__ == "__main__":
    main()
