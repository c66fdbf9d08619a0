"""`python -m grit_lite` is the `grit-lite` command; launchers of several processes start it so."""

from grit_lite.cli import main

main()
