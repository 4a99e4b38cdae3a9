"""Flags: their types, defaults and checks, the --config file, and where weights may come from. Nothing here imports
torch, so that --help and a wrong flag answer at once."""
