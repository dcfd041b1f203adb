"""Access to the results of a finished run (results/{atlas}), for its report."""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import anndata
import pandas as pd

from atlasmap.files import read_table, recorded
from atlasmap.names import slug

VERDICTS = ("confident", "ambiguous", "novel")
COMMAND = re.compile(r"^\d\d:\d\d:\d\d atlasmap (\S+)", re.MULTILINE)
DEVICE = re.compile(r"^\d\d:\d\d:\d\d device: (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Final:
    """The final mapping, whose atlas is the run's main result."""

    seed: int
    variant: str
    strategy: str

    def only(self, table: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of a table that belong to this mapping."""
        for key, value in vars(self).items():
            if key in table:
                table = table[table[key] == value]
        return table


@dataclass(frozen=True)
class Found:
    """Results of a run below `folder`; `config`: its settings as the user gave them.

    Results that the run did not make are empty tables or dictionaries, or None.
    """

    folder: Path
    final: Final
    config: dict = field(default_factory=dict)

    def table(self, name: str) -> pd.DataFrame:
        """Returns all rows of benchmark/{name}.csv."""
        path = self.folder / "benchmark" / f"{name}.csv"
        return read_table(path) if path.is_file() else pd.DataFrame()

    def of_final(self, name: str) -> pd.DataFrame:
        """Returns the rows of benchmark/{name}.csv that belong to the final mapping."""
        return self.final.only(self.table(name))

    def read(self, name: str) -> dict:
        """Returns the content of a JSON file below the folder; {} if it does not exist."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @cached_property
    def contract(self) -> dict:
        """What was checked and decided about the data: contract.json."""
        return self.read("data/contract.json")

    @cached_property
    def obs(self) -> pd.DataFrame:
        """obs of the atlas; empty if there is no atlas."""
        path = self.folder / "atlas.h5ad"
        return anndata.read_h5ad(path, backed="r").obs if path.is_file() else pd.DataFrame()

    @cached_property
    def model(self) -> str:
        """Folder of the reference's bundle, relative to `folder`."""
        top = f"seed{self.final.seed}/reference"
        names = (f"scanvi_{self.final.variant}", self.final.variant)
        found = (f"{top}/{name}" for name in names if (self.folder / top / name).is_dir())
        return next(found, top)

    @cached_property
    def card(self) -> Path | None:
        """Path of the reference's model card, or None."""
        path = self.folder / self.model / "card.md"
        return path if path.is_file() else None

    @cached_property
    def about_model(self) -> dict:
        """settings.json of the reference's bundle."""
        return self.read(f"{self.model}/settings.json")

    @cached_property
    def learned(self) -> dict:
        """Calibration of the reference's labels: calibration.json."""
        return self.read(f"{self.model}/calibration.json")

    @cached_property
    def knows_truth(self) -> bool:
        """Whether query cells have known labels to score against."""
        scores = self.table("classification")
        return "split" in scores and bool((scores["split"] == "query").any())

    def verdicts(self, batch: str | None = None) -> pd.DataFrame:
        """Count query cells (of one batch, or all) by predicted label and verdict.

        Empty if there are no verdicts.
        """
        if not {"role", "verdict", "predicted_label"} <= set(self.obs):
            return pd.DataFrame()
        cells = self.obs[self.obs["role"] == "query"]
        cells = cells if batch is None else cells[cells["batch"].astype(str) == batch]
        label, verdict = (cells[key].astype(str) for key in ("predicted_label", "verdict"))
        counts = pd.crosstab(label, verdict).reindex(columns=list(VERDICTS), fill_value=0)
        counts.insert(0, "cells", counts.sum(axis=1))
        return counts.rename_axis(index="predicted label", columns=None).reset_index()

    @cached_property
    def certificates(self) -> pd.DataFrame:
        """Certificates with the final seed, variant and strategy; one row per mapping."""
        return self.of_final("certificates")

    @cached_property
    def checksums(self) -> dict[str, str]:
        """Path of each result, relative to `folder` → its checksum."""
        return {str(path.relative_to(self.folder)): digest
                for path, digest in recorded(self.folder).items()}  # fmt: skip

    def of_query(self, batch: str) -> str:
        """Returns the path of a query batch's prepared file, relative to `folder`."""
        return f"data/queries/{slug(batch)}.h5ad"

    @cached_property
    def stages(self) -> pd.DataFrame:
        """Jobs, seconds, GPU-hours and maximum memory (MB) per command, longest first.

        From Snakemake's benchmark files, which hold the successful attempt of each job.
        """
        rows = []
        for path in sorted((self.folder / "logs").rglob("*.tsv")):
            log = path.with_suffix(".log")
            text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
            command, device = COMMAND.search(text), DEVICE.search(text)
            said = pd.read_csv(path, sep="\t")[["s", "max_rss"]].apply(
                pd.to_numeric, errors="coerce"
            )
            seconds = said["s"].sum()
            on_gpu = device is not None and device.group(1) == "cuda"
            stage = command.group(1) if command else path.stem
            rows.append((stage, seconds, on_gpu * seconds / 3600, said["max_rss"].max()))
        table = pd.DataFrame(rows, columns=["stage", "seconds", "gpu_hours", "memory_mb"])
        each = table.groupby("stage").agg(
            jobs=("seconds", "size"), seconds=("seconds", "sum"),
            gpu_hours=("gpu_hours", "sum"), memory_mb=("memory_mb", "max"),
        )  # fmt: skip
        return each.sort_values("seconds", ascending=False).reset_index()
