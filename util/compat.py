"""Asking an installed library what it can do, instead of comparing version numbers."""
import inspect


def accepts(function, keyword):
    """True where `function` (or a class's constructor) takes the named keyword."""
    return keyword in inspect.signature(function).parameters


def supported(function, **options):
    """Those of `options` that `function` takes, for keywords that are merely faster or tidier where they exist."""
    return {name: value for name, value in options.items() if accepts(function, name)}
