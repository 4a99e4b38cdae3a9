"""Command-line flags: parsers, types, checks, the --config file, and the values that flags and checkpoints share (input
size, mean and std, location of weights). Nothing here imports torch, so that --help and a wrong flag answer at once.
Code that acts on flags belongs to the package that does the work.
"""
