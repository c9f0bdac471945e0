"""Backends run training steps; all compute the values and gradients of the formulas in `sae_lightning.nn`.

`dense` runs any parts. The other backends have a rule per part, by the exact type of the part, so that the rule of a
parent is never applied to a subclass with another formula. Tests compare every rule with `dense`, so a backend changes
only the cost of a step, not its results.
"""

from typing import Literal, get_args

from sae_lightning.backends.dense import Dense
from sae_lightning.nn.autoencoder import SparseAutoencoder
from sae_lightning.nn.regularizers import Regularizer

BackendName = Literal["auto", "dense", "sparse", "sharded"]
"""`auto` is the fastest backend with rules for the parts; `sharded` is for latents spread over several processes."""


def choose(
    name: BackendName,
    core: SparseAutoencoder,
    regularizer: Regularizer | None,
    device: str,
    chunk_size: int | None = None,
    dense_above: int | None = None,
    own_loss: bool = False,
) -> Dense:
    """Return the backend that runs an SAE on one process.

    Args:
        name: Name of the backend.
        core: The SAE.
        regularizer: Penalty on its codes, or None.
        device: Type of the device of the SAE, such as `cpu`.
        chunk_size: Number of samples whose dense pre-codes are in memory at a time; needs the sparse backend.
        dense_above: Number of codes per sample above which the sparse backend uses dense products.
        own_loss: Whether `loss_terms` is overridden: it may then read outputs that only the dense backend computes.

    Returns:
        The backend.

    Raises:
        ValueError: If the backend is unknown or cannot run these parts.

    Example:
        >>> from sae_lightning.backends import choose
        >>> from sae_lightning.nn import L1, Affine, Decoder, Orthant, SparseAutoencoder
        >>> core = SparseAutoencoder(Affine(2, 4), Orthant(4), Decoder(2, 4))
        >>> choose("auto", core, L1(4), device="cpu").name, choose("auto", core, L1(4), device="cuda").name
        ('sparse', 'dense')
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
    except ModuleNotFoundError as error:  # the package must work without the folder `sparse`
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
