"""How a training step is run: ways that all give the values and gradients of the formulas in `sae_lightning.nn`.

A backend has rules for the exact types of the parts that it knows (`type(part)`, so that a subclass with a changed
formula is not run by its parent's rule). `dense` needs no rules and takes any parts. The others are held to it by one
test over all their rules; to delete one changes no result, only its cost.
"""

from typing import Literal, get_args

from sae_lightning.backends.dense import Dense
from sae_lightning.nn.autoencoder import SparseAutoencoder
from sae_lightning.nn.regularizers import Regularizer

BackendName = Literal["auto", "dense", "sparse", "sharded"]
"""`auto`: the fastest that knows the parts; `sharded` is for strategies that put latents on several processes."""


def choose(
    name: BackendName,
    core: SparseAutoencoder,
    regularizer: Regularizer | None,
    device: str,
    chunk_size: int | None = None,
    dense_above: int | None = None,
    own_loss: bool = False,
) -> Dense:
    """The backend that runs an SAE on one process.

    Args:
        name: What the user asked for.
        core: The SAE.
        regularizer: What its codes cost, or None.
        device: Type of the device that it is on.
        chunk_size: Samples whose dense pre-codes are held at a time, which needs the sparse backend.
        dense_above: Codes per sample above which the sparse backend takes dense products.
        own_loss: Whether the loss is somebody's own, of which no rule knows what it reads.

    Raises:
        ValueError: If the backend that was asked for is unknown or cannot run these parts.
    """
    if name not in get_args(BackendName):
        raise ValueError(f"backend must be one of {', '.join(get_args(BackendName))}, but is {name!r}")
    if name == "sharded":
        raise ValueError(
            "backend = sharded needs latents on several processes: train with ModelParallelStrategy and "
            "tensor_parallel_size above 1, or take one of auto, dense, sparse"
        )
    if name == "dense" or (name == "auto" and device != "cpu" and chunk_size is None):
        if chunk_size is not None:
            raise ValueError(f"chunk_size must be None with backend = dense, but is {chunk_size}")
        return Dense(core, regularizer)
    try:
        from sae_lightning.backends.sparse import Sparse
    except ModuleNotFoundError as error:  # whoever deletes it has the dense one
        if error.name != f"{__name__}.sparse" or name == "sparse" or chunk_size is not None:
            raise
        return Dense(core, regularizer)
    missing = [*Sparse.without_rule(core, regularizer), *(["loss_terms"] if own_loss else [])]
    if not missing:
        return Sparse(core, regularizer, chunk_size, dense_above)
    if name == "sparse":
        raise ValueError(f"backend = sparse has no rule for {', '.join(missing)}: take auto or dense")
    if chunk_size is not None:
        raise ValueError(f"chunk_size must be None where the sparse backend has no rule, as for {', '.join(missing)}")
    return Dense(core, regularizer)


__all__ = ["BackendName", "Dense", "choose"]
