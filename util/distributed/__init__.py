"""Processes: ranks, process group and collectives, the hang detector, and signals."""
