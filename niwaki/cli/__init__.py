"""The command line: `niwaki train`, `prune`, `report` and `inspect`. The only folder that prints to the terminal.

Imports core, trace, networks, performance, testing, post_training, report, niwaki and train. Nothing imports it.
"""

from niwaki.cli.app import main

__all__ = ["main"]
