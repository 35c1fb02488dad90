"""The command line: `niwaki train` and `niwaki inspect`. The only folder that talks to the terminal.

Imports everything; nothing imports it.
"""

from niwaki.cli.app import main

__all__ = ["main"]
