"""Checks of shapes and conversion to NumPy, common to all figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def float_array(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> FloatArray:
    """Check the shape of a tensor and convert it to a float32 array.

    Args:
        name: Name of the argument, for the error message.
        tensor: Tensor on any device and of any real dtype, including bfloat16.
        shape: Expected size of each dimension; None accepts any size.

    Returns:
        An array of the same shape.

    Raises:
        ValueError: If the shape differs.
    """
    _check_shape(name, tensor, shape)
    return np.asarray(tensor.detach().float().cpu().numpy(), dtype=np.float32)


def label_array(name: str, labels: Tensor, size: int, names: Sequence[str], names_argument: str) -> IntArray:
    """Check that integer labels have a name or are -1, and convert them to an array.

    Args:
        name: Name of the argument, for the error message.
        labels: Integer labels, shape `(size,)`; -1 is unlabeled.
        size: Expected number of labels.
        names: One name per label.
        names_argument: Name of the argument that holds `names`, for the error message.

    Returns:
        The labels, shape `(size,)`.

    Raises:
        ValueError: If the shape differs, labels are not integers, or a label is below -1 or has no name.
    """
    _check_shape(name, labels, (size,))
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"`{name}` must hold integers, got dtype {labels.dtype}.")
    array: IntArray = labels.detach().long().cpu().numpy()
    if size and (array.min() < -1 or array.max() >= len(names)):
        raise ValueError(
            f"`{name}` must lie between -1 and {len(names) - 1}, as `{names_argument}` has {len(names)} "
            f"entries, got values from {array.min()} to {array.max()}."
        )
    return array


def check_length(name: str, values: Sequence[Any], length: int, rule: str) -> None:
    """Check the length of a sequence.

    Args:
        name: Name of the argument, for the error message.
        values: The sequence.
        length: Expected length.
        rule: Reason for that length, for the error message, such as "one per latent".

    Raises:
        ValueError: If the length differs.
    """
    if len(values) != length:
        raise ValueError(f"`{name}` must have {length} entries ({rule}), got {len(values)}.")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = tensor.dim() == len(shape) and all(
        want is None or want == size for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"`{name}` must have shape ({expected}), got {tuple(tensor.shape)}.")
