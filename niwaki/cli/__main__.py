"""`python -m niwaki.cli` is the `niwaki` command."""

from niwaki.cli.app import main

main()
