"""`python -m dynamo_cli` is the `dynamo` command."""

from dynamo_cli.cli import main

main()
