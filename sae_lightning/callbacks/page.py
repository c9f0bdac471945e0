"""The page of a run: what each SAE finds, and what its latents fire on, for people."""

import math
import os
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from sae_lightning.callbacks.base import RunCallback, find, found
from sae_lightning.callbacks.data import HasSamples, data_of
from sae_lightning.callbacks.meaning import PER_CONCEPT, LatentMeaning, Meaning, knows_contexts
from sae_lightning.callbacks.recovery import ConceptRecovery
from sae_lightning.callbacks.recovery_metrics import Recovery, columns
from sae_lightning.callbacks.table import RecoveryTable, found_above
from sae_lightning.callbacks.visibility import Visibility, VisibilityReport, alone
from sae_lightning.modules.module import SAEModule
from sae_lightning.plotting import family_styles, palette
from sae_lightning.report import (
    Concept,
    Detector,
    Example,
    Excerpt,
    Figure,
    Latent,
    Measure,
    Overlap,
    Report,
    SAEReport,
    Sample,
    read_excerpts,
    read_figures,
    render,
)
from sae_lightning.run.files import replacing
from sae_lightning.run.loggers import run_folder


class ReportPage(RunCallback):
    """Writes `report.html` to the run's folder: one file that opens in any browser, offline.

    It holds the table of the SAEs with what each one finds and hides, and the best latents of each concept, as the last
    validation or test measured them; after a test also the latents that LatentMeaning chose, with the samples on which
    they fire most.

    Args:
        enabled: Whether to write it.
        max_latents: Latents of each SAE on the page, at least 0; LatentMeaning may choose fewer.
        max_megabytes: Room for the texts and images of examples, then for figures; numbers come on top of it. Where
            it is too little, each latent keeps the examples with its largest codes.

    Raises:
        ValueError: If an argument is negative.
    """

    key = "page"
    serves = SAEModule
    needs = (ConceptRecovery,)
    uses = (RecoveryTable, LatentMeaning, VisibilityReport)

    def __init__(self, enabled: bool = True, max_latents: int = 200, max_megabytes: float = 8.0) -> None:
        for name, value in {"max_latents": max_latents, "max_megabytes": max_megabytes}.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, but is {value}")
        self.enabled = enabled
        self.max_latents = max_latents
        self.max_megabytes = max_megabytes
        self._written = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write on rank zero."""
        if not trainer.sanity_checking:  # in training too: a run that is killed and resumed at its end measures nothing
            self._write(trainer, pl_module, "val")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where the page is."""
        self._print(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write on rank zero, and say where the page is."""
        self._write(trainer, pl_module, "test")
        self._print(trainer)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder, recovery = run_folder(trainer), found(trainer, ConceptRecovery)
        if not self.enabled or not trainer.is_global_zero or folder is None or not recovery.results:
            return
        assert isinstance(pl_module, SAEModule)
        page = render(self._gather(trainer, pl_module, folder, stage))
        with replacing(folder / "report.html", "w", encoding="utf-8") as file:
            file.write(page)
        self._written = True

    def _print(self, trainer: pl.Trainer) -> None:
        folder = run_folder(trainer)
        if self._written and folder is not None:
            print(f"Page:        {folder / 'report.html'}\n")

    def _gather(self, trainer: pl.Trainer, module: SAEModule, folder: Path, stage: str) -> Report:
        recovery, collected = found(trainer, ConceptRecovery), find(trainer, LatentMeaning)
        data, concepts = data_of(trainer), recovery.concept_names
        meanings = collected.results if collected is not None else {}
        families = {name: type(sae).__name__ for name, sae in module.saes().items()}
        styles = family_styles(families.values())
        saes = [
            report_sae(
                name or families[name],
                families[name],
                styles[families[name]].color,
                module.saes()[name].d_sae,
                measured,
                meanings.get(name),
                self.max_latents,
            )
            for name, measured in recovery.results.items()
        ]
        looked = find(trainer, VisibilityReport)
        if looked is not None and looked.results is not None:
            saes = [with_visibility(sae, looked.results, looked.min_jaccard) for sae in saes]
        room = 1e6 * self.max_megabytes
        positions = by_importance(saes)
        excerpts: dict[int, Excerpt] = {}
        notes = []
        if has_contexts := bool(positions) and knows_contexts(data):
            excerpts, used = read_excerpts(positions, lambda p: data.contexts("test", p), room)
            room -= used
            saes = [_with_examples_in(sae, excerpts) for sae in saes]
            missing = len(positions) - len(excerpts)
            if missing:
                notes.append(f"{missing:,} samples are left out, to keep the page below {self.max_megabytes:g} MB.")
        samples = {
            position: Sample(members, excerpts.get(position))
            for position, members in zip(positions, _memberships(data, positions), strict=True)
            if position in excerpts or not has_contexts
        }
        folders = {"": folder / "figures" / stage}
        folders |= {name: folder / "figures" / name / stage for name in recovery.results if name}
        figures = [Figure(caption, uri) for caption, uri in read_figures(folders, room)]
        return Report(
            title=_title(folder),
            facts=_facts(trainer, module, saes, meanings, stage),
            concepts=[Concept(name, color) for name, color in zip(concepts, palette(len(concepts)), strict=True)],
            found_above=found_above(trainer),
            saes=saes,
            samples=samples,
            figures=figures,
            notes=notes,
            min_jaccard=looked.min_jaccard if looked is not None else 0.5,
        )


def report_sae(
    name: str, family: str, color: str, d_sae: int, measured: Recovery, meaning: Meaning | None, max_latents: int
) -> SAEReport:
    """Bring what was measured of one SAE into plain numbers."""
    f1 = measured.f1
    scores = None if f1 is None else torch.stack([f1.f1, f1.precision, f1.recall]).cpu()
    mono = None if measured.monosemanticity is None else measured.monosemanticity.per_latent.tolist()
    shown = meaning.shown[:max_latents] if meaning is not None else []
    return SAEReport(
        name=name,
        family=family,
        color=color,
        n_latents=d_sae,
        measures=measures(measured),
        best_f1=[] if f1 is None else f1.best.tolist(),
        detectors=[] if scores is None else [_best(scores[:, i]) for i in range(scores.shape[1])],
        latents=[] if meaning is None else [_latent(i, meaning, scores, mono) for i in shown],
    )


def measures(measured: Recovery) -> list[Measure]:
    """The numbers of one SAE that the page's table shows; those that need labels only where there are any."""
    scalars = {key: float(value) for key, value in measured.scalars([]).items()}
    found = []
    for scalar in columns():
        if scalar.column is not None and (measured.labeled or not scalar.labeled):
            value = scalars.get(scalar.key)
            known = None if value is None or math.isnan(value) else value
            label = scalar.column.page_label or scalar.column.label
            found.append(Measure(label, scalar.column.meaning, scalar.column.text(known)))
    return found


def with_visibility(sae: SAEReport, results: Visibility, min_jaccard: float) -> SAEReport:
    """Add what it could see, and which latents it alone has."""
    field = results.fields[sae.name]
    overlaps = {
        other: Overlap(float(overlap.alone), float(overlap.alone_by_chance), alone(overlap, min_jaccard))
        for (name, other), overlap in results.overlaps.items()
        if name == sae.name
    }
    return sae._replace(
        field=None if field is None else field.name, sights=results.sights.get(sae.name, ()), overlaps=overlaps
    )


def _best(scores: Tensor) -> list[Detector]:
    """The best latents for one concept, of `(3, d_sae)` F1, precision and recall."""
    f1, order = scores[0].nan_to_num(0.0).sort(descending=True, stable=True)
    return [Detector(i, *scores[:, i].tolist()) for i in order[:PER_CONCEPT][f1[:PER_CONCEPT] > 0].tolist()]


def _latent(i: int, meaning: Meaning, scores: Tensor | None, mono: list[float] | None) -> Latent:
    top = meaning.top
    examples = [Example(p, code) for p, code in zip(top.indices[i].tolist(), top.values[i].tolist(), strict=True)]
    concept = detects = None
    if scores is not None and scores.shape[1]:
        value, best = scores[0, :, i].nan_to_num(0.0).max(0)
        if value > 0:
            concept = int(best)
            detects = Detector(i, *scores[:, concept, i].tolist())
    return Latent(
        number=i,
        frequency=float(top.frequency[i]),
        mean_code=float(top.mean_code[i]),
        examples=[example for example in examples if example.sample >= 0],
        concept=concept,
        detects=detects,
        monosemanticity=None if mono is None else mono[i],
    )


def by_importance(saes: list[SAEReport]) -> list[int]:
    """Positions of all examples once each: every latent's best example first, then every one's second best."""
    ranks = zip_longest(*(latent.examples for sae in saes for latent in sae.latents))
    return list(dict.fromkeys(example.sample for rank in ranks for example in rank if example is not None))


def _with_examples_in(sae: SAEReport, kept: dict[int, Any]) -> SAEReport:
    latents = [
        latent._replace(examples=[example for example in latent.examples if example.sample in kept])
        for latent in sae.latents
    ]
    return sae._replace(latents=latents)


def _memberships(data: object, positions: list[int]) -> list[list[int]]:
    """The concepts of samples of the test data; none where the data do not hold them."""
    if not isinstance(data, HasSamples) or not data.concept_names or not positions:
        return [[] for _ in positions]
    concepts = data.split("test").concepts[torch.tensor(positions)]
    if concepts.ndim == 2:
        return [row.nonzero().flatten().tolist() for row in concepts]
    return [[label] if label >= 0 else [] for label in concepts.tolist()]


def _facts(
    trainer: pl.Trainer, module: SAEModule, saes: list[SAEReport], meanings: dict[str, Meaning], stage: str
) -> list[tuple[str, str]]:
    data = data_of(trainer)
    several = "" if len(saes) == 1 else f" of {len(saes)} SAEs"
    facts = [("Data", type(data).__name__)] if data is not None else []
    facts.append(("Model", f"{type(module).__name__}{several}, d_in {module.d_in}"))
    if "PL_GLOBAL_SEED" in os.environ:
        facts.append(("Seed", os.environ["PL_GLOBAL_SEED"]))
    facts.append(("Trained on", f"{module.samples_seen:,} samples"))
    if stage == "val":
        facts.append(("Measured on", "the validation data (a test adds what latents fire on)"))
    if meanings:
        facts.append(("Tested on", f"{int(next(iter(meanings.values())).top.samples):,} samples"))
    facts.append(("Date", time.strftime("%Y-%m-%d %H:%M")))
    return facts


def _title(folder: Path) -> str:
    """The run's folder, with the one that it lies in unless that holds all runs."""
    folder = folder.resolve()
    return folder.name if folder.parent.name in ("", "runs") else f"{folder.parent.name}/{folder.name}"
