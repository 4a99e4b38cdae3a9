"""Command lines, python -m util.tools.NAME: launching, checks of the machine, preparation of data, and use of trained
models (inference is what those share).

A tool parses its flags and calls the packages below; nothing else in util imports from here, only main_predict.py does.
"""
