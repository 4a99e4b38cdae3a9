"""Command lines: python -m util.tools.NAME. Nothing else in util imports from here."""
