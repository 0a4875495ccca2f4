"""`python -m wanpipe` is the command line."""

from wanpipe.cli import main

main()
