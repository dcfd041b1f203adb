"""The explorer page: packed cells and drawing code in one HTML file that needs no network.

Points are drawn by regl-scatterplot (Lekschas 2023, J. Open Source Softw. 8:5275), which pans,
zooms and lassoes millions of points on a GPU. It is shipped with the package (`atlasmap.vendor`);
alternatives download their code when a page is made or opened, or need a server.
"""

import base64
import gzip
import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import anndata
import numpy as np

from atlasmap.data.registry import PROTEIN_NAMES
from atlasmap.evaluation.samples import stratified
from atlasmap.explorer.columns import OF_QUERY, ON_CARD, Category, Number, columns_of
from atlasmap.explorer.genes import expression, markers
from atlasmap.mapping.denoise import PROTEIN
from atlasmap.settings import ExplorerSettings
from atlasmap.vendor import source

HERE = files("atlasmap.explorer")


@dataclass(frozen=True)
class Packed:
    """Arrays packed into one sequence of bytes."""

    parts: list[bytes] = field(default_factory=list)

    def add(self, values: np.ndarray | bytes) -> dict:
        """Append an array or text, aligned to 8 bytes; returns its offset, length and type."""
        raw = values if isinstance(values, bytes) else values.tobytes()
        at = sum(map(len, self.parts))
        self.parts.append(raw + b"\0" * (-len(raw) % 8))
        kind = "text" if isinstance(values, bytes) else values.dtype.name
        return {"at": at, "bytes": len(raw), "type": kind}

    def text(self) -> str:
        """Returns all bytes, gzipped and base64-encoded; deterministic (mtime is 0)."""
        return base64.b64encode(gzip.compress(b"".join(self.parts), 6, mtime=0)).decode()


def chosen(adata: anndata.AnnData, most: int) -> np.ndarray:
    """Returns indices of the cells to show: all, or `most` stratified by batch and label.

    Strata are sampled in proportion, small ones with at least 10 cells. The order is random, so
    that no group is always drawn on top.
    """
    rng, key = np.random.default_rng(0), "predicted_label"
    at = np.arange(adata.n_obs)
    if adata.n_obs > most:
        label = adata.obs[key if key in adata.obs else "label"].astype(str)
        strata = (adata.obs["batch"].astype(str) + "\0" + label).to_numpy()
        at = stratified(strata, most, rng)
    return rng.permutation(at)


def square(positions: np.ndarray) -> np.ndarray:
    """Scale positions (cells × 2) to between −1 and 1, keeping the aspect ratio."""
    low, high = positions.min(0), positions.max(0)
    scale = max(float((high - low).max()), 1e-9) / 1.9
    return ((positions - (low + high) / 2) / scale).astype(np.float32)


def genes_of(
    adata: anndata.AnnData, counts: list[Path], settings: ExplorerSettings
) -> list[Number]:
    """Returns expression of the genes in the settings, or of marker genes if there are none."""
    genes = list(settings.genes)
    if not counts:
        return []
    key = "predicted_label" if "predicted_label" in adata.obs else "label"
    if not genes:
        genes = markers(counts, adata.obs, adata.obs[key].cat.codes.to_numpy())
    return expression(counts, adata.obs, genes) if genes else []


def proteins_of(adata: anndata.AnnData) -> list[Number]:
    """Returns ln(1 + denoised counts) of each protein; empty unless the atlas is of CITE-seq."""
    if PROTEIN not in adata.obsm:
        return []
    names, values = adata.uns[PROTEIN_NAMES], np.asarray(adata.obsm[PROTEIN])
    return [Number.of(f"protein {name}", str(name), np.log1p(values[:, k]))
            for k, name in enumerate(names)]  # fmt: skip


def described(
    packed: Packed, columns: list[Category | Number], group: str, order: np.ndarray
) -> list[dict]:
    """Pack the columns' cells in the given order; returns the columns' descriptions."""
    out = []
    for column in columns:
        where = packed.add(column.packed()[order])
        about = {"key": column.key, "title": column.title, "group": group}
        about |= {"of_query": column.key in OF_QUERY} | column.about()
        out.append(about | {"data": where})
    return out


def explorer_page(
    adata: anndata.AnnData, title: str, counts: list[Path], settings: ExplorerSettings
) -> str:
    """Returns the explorer of an atlas (obs and obsm X_umap, as in `atlas.h5ad`) as HTML.

    `counts`: files of the prepared reference and query batches, from which genes are read.
    """
    from jinja2 import Environment

    order, packed = chosen(adata, settings.max_cells), Packed()
    positions = square(np.asarray(adata.obsm["X_umap"])[order])
    cells = list(columns_of(adata.obs, adata.uns))
    about = {
        "title": title, "n": len(order), "n_all": adata.n_obs,
        "x": packed.add(positions[:, 0]), "y": packed.add(positions[:, 1]),
        "ids": packed.add("\0".join(adata.obs_names[order]).encode()),
        "columns": described(packed, cells, "Cells", order)
        + described(packed, proteins_of(adata), "Proteins", order)
        + described(packed, genes_of(adata, counts, settings), "Genes", order),
        "card": [column.key for column in cells if column.key in ON_CARD],
    }  # fmt: skip
    css, js, template = (
        HERE.joinpath(f"explorer.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "js", "html")
    )
    return Environment(autoescape=True).from_string(template).render(
        title=title, roles=adata.obs["role"].value_counts().to_dict(),
        n=len(order), n_all=adata.n_obs, n_batches=adata.obs["batch"].nunique(),
        css=css, js=js, vendor=source("scatterplot.js"),
        about=json.dumps(about).replace("<", "\\u003c"), data=packed.text(),
    )  # fmt: skip
