"""What a finished run left, for its report: tables of results/{atlas}, each as it was written."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import anndata
import pandas as pd

from atlasmap.files import recorded

TEXT = dict.fromkeys(("batch", "mapping", "label", "query", "predicted", "truth"), str)


@dataclass(frozen=True)
class Final:
    """The mapping whose atlas is the answer."""

    seed: int
    variant: str
    strategy: str

    def only(self, table: pd.DataFrame) -> pd.DataFrame:
        """Its rows of a table."""
        for key, value in vars(self).items():
            if key in table:
                table = table[table[key] == value]
        return table


@dataclass(frozen=True)
class Found:
    """Results below `folder`; what a run did not make is an empty table, or None."""

    folder: Path
    final: Final

    def table(self, name: str) -> pd.DataFrame:
        """benchmark/{name}.csv, all of it."""
        path = self.folder / "benchmark" / f"{name}.csv"
        if not path.is_file():
            return pd.DataFrame()
        try:
            table = pd.read_csv(path, dtype=TEXT, keep_default_na=False, na_values=[""])
        except pd.errors.EmptyDataError:
            return pd.DataFrame()
        if "strategy" in table:
            table["strategy"] = table["strategy"].fillna("")
        return table

    def of_final(self, name: str) -> pd.DataFrame:
        """Its rows of the final mapping."""
        return self.final.only(self.table(name))

    @cached_property
    def contract(self) -> dict:
        """What was checked and decided of the data."""
        return json.loads((self.folder / "data/contract.json").read_text(encoding="utf-8"))

    @cached_property
    def obs(self) -> pd.DataFrame:
        """obs of the atlas; without one, empty."""
        path = self.folder / "atlas.h5ad"
        return anndata.read_h5ad(path, backed="r").obs if path.is_file() else pd.DataFrame()

    @cached_property
    def card(self) -> Path | None:
        """The model card of the reference mapped onto."""
        reference = self.folder / f"seed{self.final.seed}" / "reference"
        named = [reference / name / "card.md"
                 for name in (f"scanvi_{self.final.variant}", self.final.variant)]  # fmt: skip
        return next((path for path in named if path.is_file()), None)

    @cached_property
    def about_model(self) -> dict:
        """settings.json of the same."""
        path = self.card.with_name("settings.json") if self.card else None
        return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}

    @cached_property
    def certificates(self) -> pd.DataFrame:
        """A row a mapping of the final kind."""
        return self.of_final("certificates")

    @cached_property
    def checksums(self) -> dict[str, str]:
        """Of each result, by its name."""
        return {str(path.relative_to(self.folder)): digest
                for path, digest in recorded(self.folder).items()}  # fmt: skip

    def stages(self) -> pd.DataFrame:
        """Jobs, seconds and memory (MB) a rule, from what Snakemake measured, longest first."""
        rows = []
        for path in sorted((self.folder / "logs").rglob("*.tsv")):
            said = pd.read_csv(path, sep="\t")[["s", "max_rss"]].apply(
                pd.to_numeric, errors="coerce"
            )
            rows.append((command_of(path), said["s"].sum(), said["max_rss"].max()))
        table = pd.DataFrame(rows, columns=["stage", "seconds", "memory"])
        each = table.groupby("stage").agg(
            jobs=("seconds", "size"), seconds=("seconds", "sum"), memory_mb=("memory", "max")
        )
        return each.sort_values("seconds", ascending=False).reset_index()


def command_of(path: Path) -> str:
    """What made a measurement: the command that the log beside it begins with."""
    log = path.with_suffix(".log")
    said = log.read_text(encoding="utf-8", errors="replace")[:200] if log.is_file() else ""
    words = said.partition("atlasmap ")[2].split()
    return words[0] if words else path.stem
