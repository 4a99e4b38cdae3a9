"""Emulated Ascend packages, and the tests that run on them.

This file keeps pytest from putting the folder on sys.path, where every test would find these packages; who wants them
sets PYTHONPATH to this folder.
"""
