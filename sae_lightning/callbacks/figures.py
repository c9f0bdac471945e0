"""Where figures go: TensorBoard and the run's folder."""

from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from sae_lightning.loggers import run_folder
from sae_lightning.plotting import save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def publish(trainer: pl.Trainer, figure: "Figure", tag: str) -> None:
    """Add a figure to TensorBoard under `tag`, and save it as `figures/<tag>.png` in the run's folder.

    Call it on rank zero only; the figure is dropped afterwards. Without a logger there is no folder to write to.
    """
    # in training, scalars are logged at the step before the trainer's count: a resumed run forgets both or neither
    step = trainer.global_step - (trainer.state.fn == TrainerFn.FITTING)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, global_step=step, close=True)
    folder = run_folder(trainer)
    if folder is not None:
        save_png(figure, folder / "figures" / f"{tag}.png")
