"""Checkpoint files: what they hold, reading them safely, resuming, saving, other libraries' weights, and weights into a
model."""
