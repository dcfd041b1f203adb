"""Models saved by scvi-tools 1.4.2 (`../shared/golden`), imported."""

from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from golden_numbers import Golden

from atlasmap.exchange.importing import bundle_of
from atlasmap.exchange.saves import read_save
from atlasmap.models.vae import Minibatch

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "golden").is_dir(), reason="needs the development data in ../shared"
)
REFERENCE = ["celseq2_5lines_p1", "celseq2_5lines_p2"]
QUERIES = ["celseq2_3lines", "dropseq_3lines"]
CITESEQ = ["citeseq_pbmc_5k_protein_v3", "citeseq_pbmc_10k_protein_v3"]


def load_cells(names: list[str], obs_names, var_names) -> np.ndarray:
    """Counts (cells × genes, dense) of the named cells; genes a file lacks are zero.

    As the golden models were given them: files joined on their common genes, then padded.
    """
    parts = [anndata.read_h5ad(SHARED / "data" / f"{name}.h5ad") for name in names]
    joined = anndata.concat(parts, join="inner")[list(obs_names)]
    at = joined.var_names.get_indexer(list(var_names))
    counts = joined.X.toarray()[:, at]
    counts[:, at < 0] = 0
    return counts.astype(np.float32)


def load_golden(name: str) -> Golden:
    """One golden model, ready to be asked."""
    folder = SHARED / "golden" / name
    with np.load(folder / "expected.npz") as file:
        expected = {key: file[key] for key in file.files}
    bundle = bundle_of(read_save(folder), folder / "model.pt", None)
    files = QUERIES if name.endswith("surgery") else REFERENCE
    counts = load_cells(files, expected["obs_names"], expected["var_names"])
    cells = Minibatch.of(
        torch.tensor(counts),
        (torch.tensor(expected["batch_index"][:, 0]),),
        None,
        torch.full((len(counts),), -1),
    )
    return Golden(bundle, cells, expected)


def load_citeseq(name: str) -> tuple[Golden, list[str]]:
    """A golden totalVI, ready to be asked, and its proteins; what a batch lacks is not measured."""
    folder = SHARED / "golden" / name
    with np.load(folder / "expected.npz") as file:
        expected = {key: file[key] for key in file.files}
    save = read_save(folder)
    bundle = bundle_of(save, folder / "model.pt", None)
    files = [anndata.read_h5ad(SHARED / "data" / f"{name}.h5ad") for name in CITESEQ]
    proteins = np.concatenate(
        [file.obsm["protein_expression"][save.proteins].to_numpy(np.float32) for file in files]
    )
    at = anndata.concat(files).obs_names.get_indexer(expected["obs_names"])
    batch = expected["batch_index"][:, 0]
    masks = np.stack([save.measured.get(str(k), np.ones(len(save.proteins), bool)) for k in (0, 1)])
    measured = masks[batch]
    counts = load_cells(CITESEQ, expected["obs_names"], expected["var_names"])
    cells = Minibatch.of(
        torch.tensor(counts), (torch.tensor(batch),), None, torch.full((len(counts),), -1),
        torch.tensor(np.where(measured, proteins[at], 0)), torch.tensor(measured),
    )  # fmt: skip
    return Golden(bundle, cells, expected), save.proteins
