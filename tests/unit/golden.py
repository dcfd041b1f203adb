"""Models saved by scvi-tools 1.4.2 (`../shared/golden`), their weights renamed to ours."""

import json
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from atlasmap.models.random import keyed_generator
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Minibatch, Scvi, Shape
from atlasmap.settings import ScviSettings

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "golden").is_dir(), reason="needs the development data in ../shared"
)
REFERENCE = ["celseq2_5lines_p1", "celseq2_5lines_p2"]
QUERIES = ["celseq2_3lines", "dropseq_3lines"]


@dataclass
class Golden:
    """A golden model of ours, the cells it was asked about, and what scvi-tools computes."""

    model: torch.nn.Module
    cells: Minibatch
    expected: dict[str, np.ndarray]
    labels: list[str]


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


def split_layer(weight: np.ndarray, n_categories) -> dict[str, torch.Tensor]:
    """Peer's one matrix over [x, categories] → our weight and tables."""
    blocks = [n if n > 1 else 0 for n in n_categories]
    n_in = weight.shape[1] - sum(blocks)
    out, at = {"weight": torch.tensor(weight[:, :n_in])}, n_in
    for k, n in enumerate(blocks):
        out[f"tables.{k}.reference"] = torch.tensor(weight[:, at : at + n].T.copy())
        at += n
    return out


def stack_state(w, theirs: str, ours: str, n_categories) -> dict[str, torch.Tensor]:
    """State of one `Stack` from the peer's FCLayers."""
    state, k = {}, 0
    while f"{theirs}.Layer {k}.0.weight" in w:
        layer = f"{theirs}.Layer {k}"
        for name, value in split_layer(w[f"{layer}.0.weight"], n_categories).items():
            state[f"{ours}.layers.{k}.{name}"] = value
        state[f"{ours}.layers.{k}.bias"] = torch.tensor(w[f"{layer}.0.bias"])
        for name in ("weight", "bias", "running_mean", "running_var"):
            if f"{layer}.1.{name}" in w:
                state[f"{ours}.norms.{k}.{name}"] = torch.tensor(w[f"{layer}.1.{name}"])
        k += 1
    return state


def linear_state(w, theirs: str, ours: str) -> dict[str, torch.Tensor]:
    return {f"{ours}.{part}": torch.tensor(w[f"{theirs}.{part}"]) for part in ("weight", "bias")}


def scvi_state(w, encoded, n_categories) -> dict[str, torch.Tensor]:
    state = stack_state(w, "z_encoder.encoder.fc_layers", "encoder.stack", encoded)
    state |= linear_state(w, "z_encoder.mean_encoder", "encoder.mean")
    state |= linear_state(w, "z_encoder.var_encoder", "encoder.log_var")
    state |= stack_state(w, "decoder.px_decoder.fc_layers", "decoder", n_categories)
    state |= linear_state(w, "decoder.px_scale_decoder.0", "scale")
    state |= linear_state(w, "decoder.px_dropout_decoder", "zero_inflation")
    state["log_theta.reference"] = torch.tensor(np.atleast_2d(w["px_r"].T))
    return state


def scanvi_state(w, encoded, n_categories, n_labels) -> dict[str, torch.Tensor]:
    state = {f"scvi.{k}": v for k, v in scvi_state(w, encoded, n_categories).items()}
    last = "classifier.classifier.1"
    state |= stack_state(w, "classifier.classifier.0.fc_layers", "classifier.stack", ())
    state |= linear_state(
        w, last if f"{last}.weight" in w else "classifier.classifier.0", "classifier.out"
    )
    for theirs, ours, mean, var in [
        ("encoder_z2_z1.encoder", "encoder_z2", "mean_encoder", "var_encoder"),
        ("decoder_z1_z2.decoder", "decoder_z1", "mean_decoder", "var_decoder"),
    ]:
        parent = theirs.split(".")[0]
        state |= stack_state(w, f"{theirs}.fc_layers", f"{ours}.stack", (n_labels,))
        state |= linear_state(w, f"{parent}.{mean}", f"{ours}.mean")
        state |= linear_state(w, f"{parent}.{var}", f"{ours}.log_var")
    return state


def load_golden(name: str) -> Golden:
    """One golden model, ready to be asked."""
    folder = SHARED / "golden" / name
    with np.load(folder / "weights.npz") as file:
        w = {key: file[key] for key in file.files}
    with np.load(folder / "expected.npz") as file:
        expected = {key: file[key] for key in file.files}
    about = json.loads((folder / "settings.json").read_text())
    given = about["init_params"]["non_kwargs"]
    norms = {**about["init_params"]["kwargs"].get("model_kwargs", {})}
    norms |= about["init_params"]["kwargs"].get("kwargs", {})
    encode = norms.get("encode_covariates", False)
    settings = ScviSettings(
        n_hidden=given["n_hidden"],
        n_latent=given["n_latent"],
        n_layers=given["n_layers"],
        dropout_rate=given["dropout_rate"],
        gene_likelihood=given["gene_likelihood"],
        dispersion=given["dispersion"],
        encode_covariates=encode,
        use_batch_norm=norms.get("use_batch_norm", "both"),
        use_layer_norm=norms.get("use_layer_norm", "none"),
    )
    n_categories = (len(about["batches"]),)
    encoded = n_categories if encode else ()
    n_genes = len(expected["var_names"])
    rng = keyed_generator(0, "golden")
    model = Scvi(settings, Shape(n_genes, n_categories), rng)
    labels = [label for label in about["labels"] if label != "Unknown"]
    if about["model"] == "SCANVI":
        variant = name.split("_")[1].replace("fix", "fixed").replace("prefixed", "prefix")
        model = Scanvi(model, variant, len(labels), rng)
        state = scanvi_state(w, encoded, n_categories, len(labels))
    else:
        state = scvi_state(w, encoded, n_categories)
    missing = [k for k in model.load_state_dict(state, strict=False).missing_keys]
    assert not [k for k in missing if "appended" not in k], missing
    files = QUERIES if name.endswith("surgery") else REFERENCE
    counts = load_cells(files, expected["obs_names"], expected["var_names"])
    cells = Minibatch(
        torch.tensor(counts),
        (torch.tensor(expected["batch_index"][:, 0]),),
        None,
        torch.full((len(counts),), -1),
    )
    return Golden(model, cells, expected, labels)
