"""The registry: the order, and so the indices, of a model's genes, batches, covariates, labels."""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import anndata
import numpy as np

from atlasmap.data.depth import GIVEN, tree_in
from atlasmap.data.label_tree import LabelTree
from atlasmap.errors import AtlasmapError, listed

# obsm key of protein counts in prepared cells (NaN: not measured), and uns key of their names.
PROTEINS, PROTEIN_NAMES = "protein_counts", "protein_names"
# uns keys of a prepared reference for values of the config; the first is also in its latent and
# in an atlas.
UNLABELED = "unlabeled_category"
CATEGORICAL, CONTINUOUS = "categorical_covariates", "continuous_covariates"


def unlabeled_in(cells: anndata.AnnData) -> str:
    """Return the label of unlabelled cells in a prepared reference, its latent or an atlas."""
    return str(cells.uns.get(UNLABELED, "Unknown"))


def covariates_in(cells: anndata.AnnData) -> tuple[list[str], list[str]]:
    """Return the names of the categorical and continuous covariates of a prepared reference."""
    keys = CATEGORICAL, CONTINUOUS
    return tuple([str(name) for name in cells.uns.get(key, [])] for key in keys)


def lacking(adata: anndata.AnnData) -> dict[str, list[str]]:
    """Map batches to the proteins that were not measured in them; complete batches are left out."""
    names = np.asarray(adata.uns[PROTEIN_NAMES], object)
    batch, out = adata.obs["batch"].astype(str).to_numpy(), {}
    for name in sorted(set(batch)):
        absent = np.isnan(adata.obsm[PROTEINS][batch == name]).all(0)
        if absent.any():
            out[name] = [str(protein) for protein in names[absent]]
    return out


@dataclass(frozen=True)
class Registry:
    """Ordered names of genes, batches, labels, covariates and proteins; an index is a code in the
    model.

    `categorical` maps covariate to its categories; `continuous` lists covariates. `proteins` is
    empty without CITE-seq; `proteins_missing` maps batch to proteins that were not measured in it.
    `label_parents` maps label to parent, for the ancestors of `labels`.
    """

    genes: list[str]
    symbols: list[str] | None
    batches: list[str]
    labels: list[str]
    unlabeled_category: str
    categorical: dict[str, list[str]] = field(default_factory=dict)
    continuous: list[str] = field(default_factory=list)
    proteins: list[str] = field(default_factory=list)
    proteins_missing: dict[str, list[str]] = field(default_factory=dict)
    label_parents: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, adata: anndata.AnnData) -> "Registry":
        """Build the registry of a prepared reference."""
        unlabeled, (categorical, continuous) = unlabeled_in(adata), covariates_in(adata)
        symbols = adata.var["symbol"].astype(str).tolist() if "symbol" in adata.var else None
        labels = sorted(set(adata.obs["label"]) - {unlabeled})
        return cls(
            genes=adata.var_names.tolist(),
            symbols=symbols,
            batches=sorted(adata.obs["batch"].unique()),
            labels=labels,
            unlabeled_category=unlabeled,
            categorical={key: sorted(adata.obs[key].astype(str).unique()) for key in categorical},
            continuous=continuous,
            proteins=[str(name) for name in adata.uns.get(PROTEIN_NAMES, [])],
            proteins_missing=lacking(adata) if PROTEINS in adata.obsm else {},
            label_parents=tree_in(adata).above(labels).parents,
        )

    def as_dict(self) -> dict:
        """Return the registry for JSON; an empty `label_parents` is left out."""
        said = asdict(self)
        return {key: of for key, of in said.items() if of or key != "label_parents"}

    def new_categories(self, obs) -> dict[int, list[str]]:
        """Map covariate index (0: batch) to the sorted categories in `obs` that are new."""
        columns = {"batch": self.batches, **self.categorical}
        return {
            k: sorted(set(obs[key].astype(str)) - set(known))
            for k, (key, known) in enumerate(columns.items())
        }

    def extended(
        self, new: dict[int, list[str]], proteins_missing: dict[str, list[str]] | None = None
    ) -> "Registry":
        """Return a registry with `new` categories (covariate index → names) appended.

        `proteins_missing`: proteins that were not measured in the new batches.
        """
        categorical = {
            key: known + new.get(k, [])
            for k, (key, known) in enumerate(self.categorical.items(), start=1)
        }
        missing = self.proteins_missing | (proteins_missing or {})
        return replace(
            self, batches=self.batches + new.get(0, []), categorical=categorical,
            proteins_missing=missing,
        )  # fmt: skip

    @property
    def n_categories(self) -> tuple[int, ...]:
        """Number of categories of each categorical covariate, batch first."""
        return (len(self.batches), *(len(known) for known in self.categorical.values()))

    def codes(self, obs) -> np.ndarray:
        """Category codes (cells × categorical covariates, batch first); raises CATEGORY_UNKNOWN."""
        columns = {"batch": self.batches, **self.categorical}
        return np.stack([self.numbers(obs, key, known) for key, known in columns.items()], 1)

    @cached_property
    def labels_above(self) -> dict[str, list[str]]:
        """Map each ancestor of `labels` to those labels that are below it or equal it."""
        return LabelTree(self.label_parents).labels_below(self.labels)

    def label_codes(self, obs) -> np.ndarray:
        """Label codes (cells): labels first, then ancestor labels; −1 without a label."""
        if "label" not in obs or not self.labels:
            return np.full(len(obs), -1, np.int64)
        number = {name: k for k, name in enumerate(self.labels)}
        codes = obs["label"].astype(str).map(number)
        if GIVEN in obs:
            above = {name: len(number) + k for k, name in enumerate(self.labels_above)}
            codes = codes.fillna(obs[GIVEN].astype(str).map(above))
        return codes.fillna(-1).to_numpy(np.int64)

    def may_be(self) -> np.ndarray | None:
        """Mask of the labels that a cell may have, by its label code (codes × labels).

        The rows of ancestor labels allow the labels below; other rows, and the last one (code −1),
        allow all. None if there are no ancestor labels.
        """
        if not self.labels_above:
            return None
        rows = [[name in below for name in self.labels] for below in self.labels_above.values()]
        out = np.ones((len(self.labels) + len(rows) + 1, len(self.labels)), bool)
        out[len(self.labels) : -1] = rows
        return out

    def numbers(self, obs, key: str, known: list[str]) -> np.ndarray:
        """Codes of a column's values: indices in `known`; raises CATEGORY_UNKNOWN."""
        number = {name: k for k, name in enumerate(known)}
        values = obs[key].astype(str)
        unknown = sorted(set(values) - set(number))
        if unknown:
            raise AtlasmapError(
                "CATEGORY_UNKNOWN",
                expected=f"values of {key} that the model knows: {listed(known)}",
                found=listed(unknown),
                mend="map these cells by surgery first",
            )
        return values.map(number).to_numpy(np.int64)

    def measured(self) -> np.ndarray:
        """Mask of the proteins measured in each batch (batches × proteins)."""
        return np.array(
            [
                [name not in self.proteins_missing.get(batch, ()) for name in self.proteins]
                for batch in self.batches
            ]
        )

    def protein_counts(self, adata: anndata.AnnData) -> np.ndarray:
        """Return protein counts of prepared cells (cells × proteins, float32; NaN: not measured).

        Raises PROTEINS_DIFFER if the proteins are not the registry's, in its order.
        """
        found = [str(name) for name in adata.uns.get(PROTEIN_NAMES, [])]
        if found != self.proteins:
            raise AtlasmapError(
                "PROTEINS_DIFFER",
                expected=f"the model's {len(self.proteins)} proteins in their order",
                found=f"{len(found)} proteins: {listed(found, 4)}",
                mend="prepare the cells with this reference",
            )
        return np.asarray(adata.obsm[PROTEINS], np.float32)
