"""Words in label columns that mean: this cell has no label."""

import pandas as pd
import pytest
from small import caught, config

from atlasmap.data.obs import means_none
from atlasmap.files import read_table, write_table

WORDS = ["unknown", "Unassigned", "UNLABELED", "NA", "N/A", "-", "--", "doublet", "Doublets",
         "low quality", "Low-Quality", "low_quality", "null", "unclassified", "?"]  # fmt: skip


def naming(*names, column="cell_type"):
    """Give the first two cells of a file the first name, the next two the second, …"""

    def change(adata):
        at = adata.obs.columns.get_loc(column)
        for k, name in enumerate(names):
            adata.obs.iloc[2 * k : 2 * k + 2, at] = name

    return change


@pytest.mark.parametrize("word", WORDS)
def test_a_word_for_no_label_is_an_error_that_offers_both_ways(prepare, word):
    error = caught("LABEL_MEANS_NONE", prepare, naming(word))
    assert f"{word} (2 cells)" in error.found
    assert f"unlabeled_values: [{word}]" in error.mend and f"keep_labels: [{word}]" in error.mend


def test_all_words_are_listed_at_once(prepare):
    error = caught("LABEL_MEANS_NONE", prepare, naming("doublet", "unknown"))
    assert "doublet (2 cells)" in error.found and "unknown (2 cells)" in error.found


@pytest.mark.parametrize("name", ["NK", "T cell", "unknown T cell", "Other", "a", "0", "NAV", "DC"])
def test_types_are_no_such_words(name):
    assert not means_none(name)


def test_what_the_config_says_of_them(prepare):
    words, few = naming("doublet", "NA"), {"min_cells_per_label": 1}
    facts = prepare(words, config(unlabeled_values=["doublet", "NA"])).facts
    assert facts["n_unlabelled"] == 4 and not {"doublet", "NA"} & set(facts["labels"])
    facts = prepare(words, config(keep_labels=["NA"], unlabeled_values=["doublet"], **few)).facts
    assert facts["labels"]["NA"] == 2 and facts["n_unlabelled"] == 2
    # a category that is declared: as published models call cells without a label
    facts = prepare(naming("unknown"), config(unlabeled_category="unknown")).facts
    assert facts["n_unlabelled"] == 2 and "unknown" not in facts["labels"]


def test_the_default_category_is_not_declared_by_anybody(prepare):
    error = caught("LABEL_UNLABELED_COLLIDES", prepare, naming("Unknown"))
    assert "unlabeled_values: [Unknown]" in error.mend


def test_a_truth_that_means_none_is_none(prepare):
    def change(adata):
        query = adata.obs["batch"] == "query0"
        adata.obs.loc[adata.obs_names[query][:3], "cell_type"] = ["doublet", "n/a", "Unknown"]

    prepared = prepare(change, role="query")
    assert list(prepared.adata.obs["truth"][:3]) == ["Unknown"] * 3
    assert prepared.facts["n_without_truth"] == 3
    assert not {"doublet", "n/a"} & set(prepared.facts["truth_not_in_reference"])


def test_names_survive_our_tables(tmp_path):
    table = pd.DataFrame(
        {"label": ["NA", "nan", "01", "null"], "batch": ["1", "01", "None", "2"],
         "strategy": ["", "joint", "", ""], "recall": [0.5, None, 1.0, 0.0], "n": [1, 2, 3, 4]}
    )  # fmt: skip
    write_table(tmp_path / "t.csv", table)
    found = read_table(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(found, table)
