"""`python -m plait`: the command line."""

from plait.cli.main import main

main()
