"""Where figures go: TensorBoard and the run's folder."""

from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from sae_lightning.plotting import save_png
from sae_lightning.run.loggers import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def publish(trainer: pl.Trainer, figure: "Figure", tag: str) -> None:
    """Save a figure as `figures/<tag>.png` in the run's folder, and add it to TensorBoard under `tag`.

    Call it on rank zero only. Without a logger there is no folder to write to.
    """
    from matplotlib.image import imread

    folder = run_folder(trainer)
    if folder is None:
        return
    path = save_png(figure, folder / "figures" / f"{tag}.png")
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if loggers:
        # in training, scalars are logged at the step before the trainer's count: a resumed run forgets both or neither
        step = trainer.global_step - (trainer.state.fn == TrainerFn.FITTING)
        pixels = imread(path)[..., :3]  # drawing the figure a second time would take longer
        for logger in loggers:
            logger.experiment.add_image(tag, pixels, global_step=step, dataformats="HWC")
