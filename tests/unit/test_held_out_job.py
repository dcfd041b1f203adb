"""The job of a fold: all of its models, one after the other, and taken up where it was."""

import json
import logging

import anndata
import numpy as np
import pytest
from small import SCANVI, SCVI

from atlasmap.commands import trust
from atlasmap.commands.mapping import QuerySettings
from atlasmap.commands.running import Running
from atlasmap.files import sha256
from atlasmap.settings import CalibrationSettings, SurgerySettings

MADE = [f"scanvi_{v}/{f}" for v in ("fixed", "linear")
        for f in ("reference_latent.h5ad", "mapped.h5ad")]  # fmt: skip


@pytest.fixture
def job(reference, tmp_path):
    """Runs the job in a folder of that name."""
    reference.write_h5ad(tmp_path / "reference.h5ad")
    depth = float(np.median(np.asarray(reference.X.sum(1)).ravel()))
    said = {"reference": {"counts": {"median_depth": depth}}}
    (tmp_path / "contract.json").write_text(json.dumps(said))

    def run(name: str, minutes: float = 0.0):
        out = tmp_path / name
        trust.train_held_out(
            tmp_path / "reference.h5ad", contract=tmp_path / "contract.json", out=out, fold=1,
            models=[trust.Classifier(v, SCANVI) for v in ("fixed", "linear")], scvi=SCVI,
            how=QuerySettings(SurgerySettings(max_epochs=2)),
            calibration=CalibrationSettings(folds=2, n_draws=4),
            running=Running("cpu", minutes),
        )  # fmt: skip
        return out

    return run


def test_a_fold_holds_its_batches_out_of_every_model(job, reference):
    out = job("a", 5)
    batches = set(reference.obs["batch"])
    for variant in ("fixed", "linear"):
        latent, mapped = (
            anndata.read_h5ad(out / f"scanvi_{variant}" / name)
            for name in ("reference_latent.h5ad", "mapped.h5ad")
        )
        own, held = set(latent.obs["batch"]), set(mapped.obs["batch"])
        assert own and held and not own & held and own | held == batches
        assert mapped.obs["depth"].nunique() > 1 and "averaged" in mapped.obsm
    assert not list(out.rglob(".*.h5ad")) and not list(out.rglob(".checkpoints"))


def test_a_job_that_is_stopped_trains_nothing_again(job, monkeypatch, caplog):
    whole = {name: sha256(job("whole") / name) for name in MADE}
    map_one, calls = trust.map_held_out, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return map_one(*args)

    monkeypatch.setattr(trust, "map_held_out", stopped)
    with pytest.raises(KeyboardInterrupt):
        job("stopped")
    monkeypatch.setattr(trust, "map_held_out", map_one)
    with caplog.at_level(logging.INFO, logger="atlasmap"):
        out = job("stopped")
    assert {name: sha256(out / name) for name in MADE} == whole
    taken_up = [text for text in caplog.messages if "taken up at epoch" in text]
    assert len(taken_up) >= 3  # scVI and both classifiers, besides what was mapped
