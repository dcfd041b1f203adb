"""Posterior predictive checks mean what they say, and the card shows what is in the bundle."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import sparse, stats
from small import CPU, SCVI, learned, of_rate

from atlasmap.bundle import save
from atlasmap.card.checks import tables_of
from atlasmap.commands.reference import write_card
from atlasmap.errors import AtlasmapError
from atlasmap.evaluation.criticism import (
    agreement,
    draw,
    expression_agreement,
    expression_table,
    mean_variation,
    posterior_predictive,
    variation,
    variation_table,
)
from atlasmap.mapping.encode import encode
from atlasmap.mapping.given import read_latent
from atlasmap.mapping.reference import fit_scvi, reference_latent
from atlasmap.models.likelihoods import CountDistribution
from atlasmap.settings import CardSettings


def test_draws_have_the_mean_and_variance_of_the_distribution():
    rng = np.random.default_rng(0)
    rate, theta = torch.full((200_000, 3), 2.0), torch.tensor([[0.5, 2.0, 50.0]])
    drawn = draw(CountDistribution(*of_rate(rate), theta), rng)
    assert np.allclose(drawn.mean(0), 2, rtol=0.02)
    assert np.allclose(drawn.var(0), 2 + 4 / theta.numpy()[0], rtol=0.03)
    logits = torch.full_like(rate, -1.0)
    inflated = draw(CountDistribution(*of_rate(rate), theta, logits), rng)
    assert np.allclose(inflated.mean(0), 2 / (1 + np.exp(-1.0)), rtol=0.02)
    poisson = draw(CountDistribution(*of_rate(rate)), rng)
    assert np.allclose(poisson.var(0), 2, rtol=0.02)


def test_coefficients_of_variation_by_hand(rng):
    dense = rng.poisson(1.5, (40, 12)).astype(np.float32)
    dense[3], dense[:, 5] = 0, 0
    chunks = [sparse.csr_matrix(dense[:25]), sparse.csr_matrix(dense[25:])]
    found = variation(iter(chunks))
    with np.errstate(invalid="ignore"):
        by_cell = np.nan_to_num(dense.std(1) / dense.mean(1))
        by_gene = np.nan_to_num(dense.std(0) / dense.mean(0))
    assert np.allclose(found.cells, by_cell) and np.allclose(found.genes, by_gene)
    split = np.array(["train"] * 30 + ["validation"] * 10)
    table = variation_table(found, found, split)
    assert list(table["part"]) == ["train", "validation", "all"] and (table["r2"] == 1).all()
    assert agreement(by_gene, by_gene[::-1])["spearman"] < 1


def test_differential_expression_of_the_same_counts_agrees_wholly(rng):
    groups = np.repeat(["a", "b", "c", "alone"], [30, 30, 30, 1])
    rate = np.where((groups == "a")[:, None] & (np.arange(50) < 5), 8.0, 1.0)
    counts = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    table = expression_table(counts, counts, groups, "t-test").set_index("group")
    assert set(table.index) == {"a", "b", "c"}  # a group of one cell has no variance
    assert np.allclose(table[["gene_f1", "lfc_pearson", "lfc_spearman"]].astype(float), 1)
    assert (table["lfc_mae"] == 0).all()
    assert table.loc["a", "n_cells"] == 30
    other = sparse.csr_matrix(rng.poisson(1.0, counts.shape).astype(np.float32))
    worse = expression_table(counts, other, groups, "wilcoxon").set_index("group")
    assert worse.loc["a", "pr_auc"] < table.loc["a", "pr_auc"] - 0.1
    assert worse.loc["a", "lfc_mae"] > 0.1 and worse.loc["a", "gene_f1"] < 1


def ranking(scores, folds, p_values, order=None):
    frame = pd.DataFrame({"scores": scores, "logfoldchanges": folds, "pvals_adj": p_values})
    frame.index = [f"g{k}" for k in range(len(frame))]
    return frame if order is None else frame.iloc[order]


def test_agreement_of_two_rankings_by_hand():
    raw = ranking([5, 4, 3, 2, 1, 0], [3, 2, 1, 0, -1, -2], [0.01, 0.1, 0.3, 0.5, 0.6, 0.9])
    model = ranking([4, 1, 5, 2, 3, 0], [2, 2, 2, 0, 0, -2], [1] * 6, [2, 0, 4, 3, 1, 5])
    found = expression_agreement(raw, model, 2)
    assert found["gene_f1"] == 0.5  # g0 g1 against g2 g0
    assert found["lfc_mae"] == pytest.approx(0.5)
    by_hand = stats.pearsonr([3, 2, 1, 0, -1, -2], [2, 2, 2, 0, 0, -2])[0]
    assert found["lfc_pearson"] == pytest.approx(by_hand)
    assert found["roc_auc"] == pytest.approx(4 / 8)  # g0 beats 3 of 4, g1 one of 4
    nothing = raw.assign(pvals_adj=[0.5, 0.4, 0.6, 0.7, 0.8, 0.9])  # falls back to the top two
    assert expression_agreement(nothing, model, 2)["roc_auc"] == pytest.approx(4 / 8)


@pytest.fixture
def folder(reference, scanvi, tmp_path):
    """A bundle with its latent and the counts."""
    split = fit_scvi(reference, scanvi.registry, SCVI, 0, CPU)[1]
    save(scanvi, tmp_path / "scanvi_fixed")
    latent = reference_latent(reference, scanvi, split, CPU)
    latent.write_h5ad(tmp_path / "scanvi_fixed/reference_latent.h5ad")
    reference[::-1].copy().write_h5ad(tmp_path / "counts.h5ad")  # in another order
    return tmp_path / "scanvi_fixed"


def test_samples_are_their_own_and_the_same_again(reference, scanvi):
    cells = encode(scanvi.registry, reference, CPU)

    def sample(k):
        return sparse.vstack(list(posterior_predictive(scanvi.model, cells, k))).toarray()

    first = sample(0)
    assert np.array_equal(first, sample(0)) and not np.array_equal(first, sample(1))
    assert first.shape == reference.shape and (first == np.rint(first)).all()
    one = variation(posterior_predictive(scanvi.model, cells, 0))
    two = variation(posterior_predictive(scanvi.model, cells, 1))
    mean = mean_variation(scanvi.model, cells, 2)
    assert np.allclose(mean.genes, (one.genes + two.genes) / 2)


def test_a_card_has_what_it_promises(folder, tmp_path):
    settings = CardSettings(description="Made up.", license="cc0-1.0", tissue=("lung", "blood"))
    write_card(folder, counts=tmp_path / "counts.h5ad", card=settings)
    text = (folder / "card.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "atlasmap" and head["license"] == "cc0-1.0"
    for tag in ("model_cls_name:SCANVI", "atlasmap_version:0.1.0", "modality:rna", "tissue:lung",
                "tissue:blood", "annotated:True"):  # fmt: skip
        assert tag in head["tags"]
    titles = re.findall("^## (.*)$", text, re.MULTILINE)
    for part in ("Description", "coefficient of variation", "Differential expression",
                 "calibration", "Architecture", "Setup", "Training", "Summary", "registry",
                 "Fingerprint", "Versions", "Map a query"):  # fmt: skip
        assert any(part in title for title in titles), part
    assert "By t-test" in text and "By wilcoxon" in text and "Made up." in text
    said = json.loads((folder / "card.json").read_text())
    assert (
        said["metrics"]["variation"][0]["n"] + said["metrics"]["variation"][1]["n"]
        == (said["summary"]["n_cells"])
    )
    assert {row["part"] for row in said["metrics"]["classification"]} == {"train", "validation"}
    page = (folder / "card.html").read_text()
    assert page.count("<table>") == text.count("\n|:-") and "library_name" not in page


def test_without_counts_the_checks_are_left_out_by_name(folder):
    write_card(folder)
    text = (folder / "card.md").read_text()
    assert text.count("Left out: the counts of the reference were not given.") == 2
    assert json.loads((folder / "card.json").read_text())["metrics"]["variation"] is None


def test_other_counts_are_refused(folder, reference, scanvi):
    for cells, code in [
        (reference[10:].copy(), "CELLS_DIFFER"),
        (reference[:, 3:].copy(), "GENES_DIFFER"),
    ]:
        with pytest.raises(AtlasmapError) as error:
            tables_of(scanvi, read_latent(folder), cells, "X", CardSettings())
        assert error.value.code == code


def test_large_references_are_looked_at_in_part(folder, reference, scanvi):
    given = (scanvi, read_latent(folder), reference, "X")
    whole = tables_of(*given, CardSettings(n_samples=1))
    part = tables_of(*given, CardSettings(n_samples=1, max_cells=100))
    of_cells = ["train", "validation"]
    count = [t.variation.set_index("part").loc[of_cells, "n"].sum() for t in (whole, part)]
    assert count == [reference.n_obs, 100]


def test_a_card_shows_what_was_learned_of_the_labels(folder, scanvi):
    labels = scanvi.registry.labels
    learned(labels, 80)[0].write(folder / "calibration.json")
    write_card(folder)
    text = (folder / "card.md").read_text()
    section = text.split("## How far to trust a label")[1].split("\n## ")[0]
    for said in ("150 cells, batches held out: batch3", "weights 0.50 and 1.50", "90%", "5%",
                 "misfit", f"| {labels[0]} ", "0.75", "0.60", "0.86", "0.93"):  # fmt: skip
        assert said in section, said
    assert "be careful" not in section
