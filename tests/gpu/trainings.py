"""scVI, scANVI with 17 labels and surgery on simulated cells, as the package trains them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from unittest import mock

import anndata
import torch

from atlasmap.bundle import Bundle
from atlasmap.data.registry import Registry
from atlasmap.data.simulate import simulate
from atlasmap.mapping.query import map_query
from atlasmap.mapping.reference import fit_scanvi, fit_scvi
from atlasmap.settings import (
    ScanviSettings,
    ScviSettings,
    SimulateSettings,
    SurgerySettings,
    TrainSettings,
)
from atlasmap.training.checkpoint import Checkpoints
from atlasmap.training.loop import Training

KINDS = ("scvi", "scanvi", "surgery")
LABELS = 17


@dataclass(frozen=True)
class Sizes:
    """Cells (four fifths are the reference's, the others the query's) and genes; epochs of a
    training whose bits are compared; of one that is timed, times how many in surgery, whose cells
    are fewer; steps between two looks at the clock."""

    cells: int = 5000
    genes: int = 2000
    epochs: int = 2
    timed: int = 4
    longer: int = 4
    block: int = 10


@dataclass(frozen=True)
class Trainings:
    """Each call trains from the same start: `begun`, an scVI and a scANVI of one epoch."""

    reference: anndata.AnnData
    query: anndata.AnnData
    device: torch.device
    begun: dict[str, Bundle]

    @classmethod
    def of(cls, sizes: Sizes, device: torch.device) -> "Trainings":
        """On simulated cells."""
        adata = simulate(SimulateSettings(
            n_cells=sizes.cells, n_genes=sizes.genes, n_reference_batches=16, n_query_batches=4,
            n_lineages=6, n_types_per_lineage=3,
        ))  # fmt: skip
        adata.obs["label"] = adata.obs["cell_type"]
        parts = (adata[adata.obs["role"] == role].copy() for role in ("reference", "query"))
        new = cls(*parts, device, {})
        for kind in ("scvi", "scanvi"):
            new.begun[kind] = new.train(kind, 1)
        return new

    def on(self, device: torch.device) -> "Trainings":
        """The same start on another device."""
        begun = deepcopy(self.begun)
        for bundle in begun.values():
            bundle.model.to(device)
        return replace(self, device=device, begun=begun)

    def train(self, kind: str, epochs: int, checkpoints: Checkpoints | None = None) -> Bundle:
        """A bundle of that kind, validated after the last epoch alone."""
        train = TrainSettings(max_epochs=epochs, check_val_every_n_epoch=epochs)
        if kind == "scvi":
            registry = Registry.of(self.reference)
            settings = ScviSettings(train=train)
            return fit_scvi(self.reference, registry, settings, 0, self.device, checkpoints)[0]
        if kind == "scanvi":
            start, settings = deepcopy(self.begun["scvi"]), ScanviSettings(train=train)
            told = self.reference, start, settings, "fixed", 0, self.device, checkpoints
            return fit_scanvi(*told)[0]
        settings = SurgerySettings(max_epochs=epochs, check_val_every_n_epoch=epochs)
        start = deepcopy(self.begun["scanvi"])
        return map_query(start, self.query, settings, "joint", 0, checkpoints).bundle


@contextmanager
def after_each_step(look: Callable[[Training], None]) -> Iterator[None]:
    """Within it `look` is called after each step of a training."""
    take = Training.take_step

    def taken(training: Training, step) -> None:
        take(training, step)
        look(training)

    with mock.patch.object(Training, "take_step", taken):
        yield
