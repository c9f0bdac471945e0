"""Checks of arguments, common to all metrics."""

from torch import Tensor


def check_size(name: str, value: int, minimum: int) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``.

    Raises:
        ValueError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"`{name}` must be an integer >= {minimum}, got {value!r}.")
    return value


def check_matrix(name: str, values: Tensor, columns: int | None = None, rows: int | None = None) -> Tensor:
    """Return ``values``, detached, if it is a floating point matrix of the required shape.

    Args:
        name: Name of the argument, for the error message.
        values: The tensor to check.
        columns: Required number of columns, ``None`` for any.
        rows: Required number of rows, ``None`` for any.

    Raises:
        ValueError: if it is not a matrix of that shape, or not floating point.
    """
    wanted = f"[{'batch' if rows is None else rows}, {'any' if columns is None else columns}]"
    if values.ndim != 2 or columns not in (None, values.shape[1]) or rows not in (None, values.shape[0]):
        raise ValueError(f"`{name}` must have shape {wanted}, got {list(values.shape)}.")
    if not values.is_floating_point():
        raise ValueError(f"`{name}` must be a floating point tensor, got {values.dtype}.")
    return values.detach()
