"""Support for data modules of other packages."""

import lightning.pytorch as pl

from sae_lightning.data.batch import as_batch


def activation_size(data: pl.LightningDataModule) -> int:
    """Return the number of features of a data module's activations.

    This is the attribute `d_in` if it exists. Otherwise `prepare_data`, `setup("fit")` and `train_dataloader` are
    called, and the first training batch tells.

    Args:
        data: Any LightningDataModule.

    Raises:
        ValueError: If its batches are not activations; the message says what they are.
    """
    found = getattr(data, "d_in", None)
    if found is not None:
        return int(found)
    name = type(data).__name__
    data.prepare_data()
    data.setup("fit")
    for batch in data.train_dataloader():
        try:
            x = as_batch(batch).activations
        except TypeError as error:
            raise ValueError(f"--data {name} cannot be read as activations: {error}") from None
        if x.ndim not in (2, 3):
            raise ValueError(
                f"--data {name} must yield activations of shape (batch, d_in), or (batch, input_layers, d_in), but "
                f"yields {tuple(x.shape)}"
            )
        return x.shape[-1]
    raise ValueError(f"--data {name} must yield at least one training batch, but yields none")
