"""Feature detection on installed libraries, instead of version comparisons."""
import inspect
from typing import Any, Callable, Dict


def accepts(function: Callable, keyword: str) -> bool:
    """Whether a function, or a class's constructor, has the named keyword."""
    return keyword in inspect.signature(function).parameters


def supported(function: Callable, **options: Any) -> Dict[str, Any]:
    """The `options` that `function` accepts, for keywords that only make it faster or tidier."""
    return {name: value for name, value in options.items() if accepts(function, name)}
