"""`python -m tops_engine.cli` is the `tops` command."""

from tops_engine.cli import main

main()
