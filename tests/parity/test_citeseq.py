"""totalVI's models in ours and ours in scvi-tools: the same latent, rates and proteins."""

import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

scvi = pytest.importorskip("scvi", reason="needs scvi-tools: make parity")
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from citeseq import SETTINGS, citeseq  # noqa: E402

from atlasmap.bundle import load, load_delta, save, save_delta  # noqa: E402
from atlasmap.commands.exchange import export_scvi, import_scvi  # noqa: E402
from atlasmap.commands.reference import write_reference  # noqa: E402
from atlasmap.data.registry import Registry  # noqa: E402
from atlasmap.mapping.embed import embed  # noqa: E402
from atlasmap.mapping.encode import encode  # noqa: E402
from atlasmap.mapping.query import map_query  # noqa: E402
from atlasmap.mapping.reference import fit_totalvi  # noqa: E402
from atlasmap.parity.peer import with_proteins  # noqa: E402
from atlasmap.settings import TotalviSurgerySettings  # noqa: E402

CPU = torch.device("cpu")
KINDS = {
    "arches": {},
    "by batch": {"gene_dispersion": "gene-batch", "protein_dispersion": "protein-batch"},
    "zero-inflated, learned library": {
        "gene_likelihood": "zinb", "use_observed_lib_size": False, "n_layers_decoder": 1,
    },
    "batch norm": {"use_batch_norm": "both", "use_layer_norm": "none"},
}  # fmt: skip


def trained(kind, cells):
    from dataclasses import replace

    few = replace(SETTINGS, train=replace(SETTINGS.train, max_epochs=3), **KINDS[kind])
    registry = Registry.of(cells)
    return fit_totalvi(cells, registry, few, 0, CPU)


def theirs_of(model, cells):
    """Latent and expected values at its mean, as scvi-tools computes them."""
    module = model.module.eval()
    latent = model.get_latent_representation(cells)
    data = model._make_data_loader(model._validate_anndata(cells), batch_size=1000)
    [tensors] = list(data)
    with torch.no_grad():
        inputs = module._get_inference_input(tensors)
        outputs = module.inference(**inputs)
        outputs["z"] = outputs["qz"].loc
        if not module.use_observed_lib_size:
            outputs["library_gene"] = torch.exp(outputs["ql"].loc.clamp(max=15))
        said = module.generative(**module._get_generative_input(tensors, outputs))
    return latent, said


def check(bundle, model, cells):
    """Both say the same of these cells."""
    latent, said = theirs_of(model, with_proteins(cells))
    encoded = encode(bundle.registry, cells, CPU)
    assert np.abs(embed(bundle.model, encoded).mean - latent).max() < 1e-5
    chunk = encoded.minibatch(np.arange(len(encoded)))
    with torch.no_grad():
        posterior = bundle.model.inference(chunk, None)
        ours = bundle.model.decode(posterior.z, posterior.library, chunk, None)
    for mine, yours in (
        (ours.rna.rate, said["px_"]["rate"]),
        (ours.protein.back_sd, said["py_"]["back_beta"]),
        (ours.protein.fore_scale, said["py_"]["fore_scale"]),
    ):
        assert float(((mine - yours).abs() / yours.abs().clamp(min=1e-6)).max()) < 1e-4
    for mine, yours in (
        (ours.protein.back_mean, said["py_"]["back_alpha"]),
        (ours.protein.mixing, said["py_"]["mixing"]),
    ):
        assert float((mine - yours).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lacking", [None, {"r1": [0, 4]}])
def test_out_and_in_again(kind, lacking, tmp_path):
    cells = citeseq({"r0": 80, "r1": 60}, lacking=lacking)
    bundle, split = trained(kind, cells)
    write_reference(tmp_path / "bundle", cells, bundle, split, CPU)
    export_scvi(tmp_path / "bundle", out=tmp_path / "theirs")
    model = scvi.model.TOTALVI.load(tmp_path / "theirs", with_proteins(cells), accelerator="cpu")
    check(bundle, model, cells)
    model.save(tmp_path / "again")
    import_scvi(tmp_path / "again", out=tmp_path / "ours")
    again = load(tmp_path / "ours", CPU)
    assert again.registry.proteins_missing == bundle.registry.proteins_missing
    check(again, model, cells)


def test_after_surgery(tmp_path):
    cells, query = citeseq({"r0": 80, "r1": 60}), citeseq({"q0": 50}, seed=3)
    bundle, _ = trained("arches", cells)
    save(bundle, tmp_path / "bundle")
    mapping = map_query(
        load(tmp_path / "bundle", CPU), query, TotalviSurgerySettings(max_epochs=3), "per_batch", 0
    )
    save_delta(mapping.bundle, tmp_path / "delta", mapping.new)
    export_scvi(tmp_path / "delta", out=tmp_path / "theirs", reference=tmp_path / "bundle")
    both = anndata.concat([cells, query], uns_merge="same")
    model = scvi.model.TOTALVI.load(tmp_path / "theirs", with_proteins(both), accelerator="cpu")
    whole = load_delta(tmp_path / "delta", load(tmp_path / "bundle", CPU))
    check(whole, model, both)


def test_no_minified_data_that_scvi_tools_would_misread(tmp_path):
    cells = citeseq({"r0": 80, "r1": 60})
    bundle, split = trained("arches", cells)
    write_reference(tmp_path / "bundle", cells, bundle, split, CPU)
    export_scvi(tmp_path / "bundle", out=tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").glob("[!.]*")] == ["model.pt"]
