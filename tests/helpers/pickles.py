"""Pickles that do harm."""

from collections.abc import Callable
from typing import Any


class Payload:
    """Calls a function with these arguments when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments
