"""`python -m raystudy` is the command line."""

from raystudy.cli import main

main()
