"""Labels that are terms of the Cell Ontology: found by any of their words, with their tree."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from atlasmap.data.contract import of_depth
from atlasmap.data.label_tree import LabelTree
from atlasmap.data.ontology import cell_ontology, in_words_of, plain, vocabulary_of
from atlasmap.data.ontology_tree import NO_BRANCHES, tree_of_terms
from atlasmap.data.prepare import labels_of_reference
from atlasmap.settings import DataConfig

ONTOLOGY = cell_ontology()
BLOOD = ["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "T cell", "B cell",
         "classical monocyte", "non-classical monocyte", "natural killer cell", "platelet",
         "dendritic cell", "plasmacytoid dendritic cell"]  # fmt: skip
# Fifty words for terms: synonyms of the release, plurals, hyphens, case, Greek letters, ids.
WORDS = {
    "CL:0000084": ["T cell", "T-cell", "T cells", "t lymphocyte", "T-lymphocyte", "CL_0000084"],
    "CL:0000236": ["B cell", "B-cell", "B lymphocyte", "B-lymphocytes", "b cells"],
    "CL:0000624": ["CD4-positive, alpha-beta T lymphocyte", "CD4-positive, αβ T cell",
                   "CD4-positive, alpha-beta T-cell", "cd4 positive alpha beta T cells"],
    "CL:0000625": ["CD8-positive, alpha-beta T lymphocyte", "CD8-positive, alpha-beta T-cells"],
    "CL:0000798": ["gamma-delta T cell", "γδ T cell", "gamma-delta T-lymphocyte"],
    "CL:0000623": ["natural killer cell", "NK cell", "NK cells", "NK-cell"],
    "CL:0000576": ["monocyte", "Monocytes", "MONOCYTE"],
    "CL:0000451": ["dendritic cell", "Dendritic cells", "dendritic-cell"],
    "CL:0000784": ["pDC", "plasmacytoid dendritic cell", "interferon-producing cell"],
    "CL:0000232": ["erythrocyte", "red blood cell", "RBC", "Erythrocytes"],
    "CL:0000233": ["platelet", "Platelets", "blood platelet"],
    "CL:0000169": ["type B pancreatic cell", "pancreatic beta cell", "pancreatic B cell"],
    "CL:0000171": ["pancreatic A cell", "pancreatic alpha cell"],
    "CL:0000097": ["mast cell", "mastocyte", "Mast cells"],
    "CL:0000775": ["neutrophil", "neutrophils", "neutrophil leukocyte"],
}  # fmt: skip


@pytest.mark.parametrize("term", WORDS)
def test_synonyms_resolve(term):
    assert {word: ONTOLOGY.term(word) for word in WORDS[term]} == dict.fromkeys(WORDS[term], term)


def test_there_are_fifty():
    assert sum(map(len, WORDS.values())) >= 50


def test_what_is_no_term():
    assert ONTOLOGY.term("CD14+ mono 3") is None and ONTOLOGY.term("") is None
    assert ONTOLOGY.term("CL:9999999") is None
    assert ONTOLOGY.term("CL:0000003") == "CL:0000000"  # obsolete, replaced
    assert ONTOLOGY.nearest("Tcel") == "T cell (CL:0000084)"
    assert ONTOLOGY.nearest("CL:000084") == "T cell (CL:0000084)"
    assert plain("Cells") == "cell" and plain("mass") == "mass"


def test_every_term_is_below_its_ancestors():
    lineage = ONTOLOGY.lineages["CL:0000624"]
    assert lineage["CL:0000624"] == 0 and lineage["CL:0000791"] == 1 and lineage["CL:0000084"] == 3
    assert all("CL:0000000" in ONTOLOGY.lineages[term] for term in ("CL:0000236", "CL:0000057"))
    assert set(ONTOLOGY.names.values()) >= NO_BRANCHES


def tree_of(labels: list[str]) -> LabelTree:
    return tree_of_terms(vocabulary_of(labels, {}).terms)


def test_the_tree_of_blood():
    tree = tree_of(BLOOD)
    assert tree.lineage("CD4-positive, alpha-beta T cell")[1:3] == ["T cell", "lymphocyte"]
    assert tree.lineage("T cell")[1] == tree.lineage("B cell")[1] == "lymphocyte"
    assert tree.lineage("classical monocyte")[1] == "monocyte"  # a group, though no label
    assert tree.lineage("plasmacytoid dendritic cell")[1] == "dendritic cell"
    for label in BLOOD:  # whatever is above is so in the ontology, too
        for below, above in pairwise(tree.lineage(label)):
            assert ONTOLOGY.term(above) in ONTOLOGY.lineages[ONTOLOGY.term(below)]


LUNG = ["pulmonary alveolar type 1 cell", "pulmonary alveolar type 2 cell", "club cell",
        "respiratory basal cell", "goblet cell", "capillary endothelial cell", "fibroblast",
        "vein endothelial cell", "smooth muscle cell", "pericyte", "alveolar macrophage",
        "classical monocyte", "mast cell", "B cell", "lung neuroendocrine cell", "keratinocyte",
        "ionocyte", "serous secreting cell", "multi-ciliated epithelial cell", "hepatocyte",
        "pancreatic acinar cell", "pancreatic ductal cell", "type B pancreatic cell", "adipocyte",
        "mesothelial cell", "myofibroblast cell", "natural killer cell"]  # fmt: skip


def test_groups_that_cross_are_not_both_there():
    """Else a group would lack labels that are its own in the ontology."""
    terms = vocabulary_of([*LUNG, *BLOOD], {}).terms
    tree = tree_of_terms(terms)
    groups = set(tree.parents.values())
    assert {"epithelial cell", "endothelial cell", "lymphocyte"} <= groups
    for group in groups:
        under = {label for label in terms if group in tree.lineage(label)}
        own = {x for x, term in terms.items() if ONTOLOGY.term(group) in ONTOLOGY.lineages[term]}
        assert under == own, group


def test_no_groups_that_tell_nothing_apart():
    assert tree_of(["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell"]) == (
        LabelTree({})
    )


def test_labels_of_one_term_are_below_it():
    ids = {"CD14 mono": "CL:0000576", "S100A8 mono": "CL:0000576", "B": "CL:0000236"}
    tree = tree_of_terms(vocabulary_of([*ids, "T cell"], ids).terms)
    assert tree.lineage("CD14 mono") == ["CD14 mono", "monocyte"]
    named = {**ids, "monocyte": "CL:0000576"}
    tree = tree_of_terms(vocabulary_of([*named], named).terms)
    assert tree.parents["S100A8 mono"] == "monocyte" and "monocyte" not in tree.parents


def obs_of(labels: list[str], ids: list[str] | None = None) -> pd.DataFrame:
    ids = ids or [""] * len(labels)
    return pd.DataFrame(
        {"label": np.repeat(labels, 5), "label_ontology_term_id": np.repeat(ids, 5)}
    )


def test_ids_alone_bring_names_and_a_tree():
    obs = obs_of(["CL:0000624", "CL:0000625", "CL:0000236", "CL:0000084"])
    facts, tree = labels_of_reference(obs, DataConfig(), None)
    assert facts["labels"] == {
        "B cell": 5, "CD4-positive, alpha-beta T cell": 5, "CD8-positive, alpha-beta T cell": 5,
    }  # fmt: skip
    assert facts["labels_above"]["T cell"]["n"] == 5
    assert len(facts["labels_above"]["T cell"]["below"]) == 2
    assert tree.parents["CD4-positive, alpha-beta T cell"] == "T cell"
    assert set(obs["label_ontology_term_id"]) == {
        "CL:0000624", "CL:0000625", "CL:0000236", "CL:0000084",
    }  # fmt: skip


def test_two_words_for_one_term_are_one_label():
    obs = obs_of(["T lymphocyte", "T-cell", "B cell", "odd one"])
    facts, _ = labels_of_reference(obs, DataConfig(), None)
    assert facts["labels"] == {"B cell": 5, "T cell": 10, "odd one": 5}
    assert facts["ontology"]["renamed"] == {"T lymphocyte": "T cell", "T-cell": "T cell"}
    said = "\n".join(of_depth(facts))
    assert "T lymphocyte is T cell" in said and "odd one (nearest: " in said


def test_a_wrong_id_names_the_nearest_term():
    facts, _ = labels_of_reference(obs_of(["CL:0000236", "CL:000084"]), DataConfig(), None)
    assert "CL:000084 (nearest: T cell (CL:0000084))" in "\n".join(of_depth(facts))
    obs = obs_of(["T cell", "B cell"], ["CL:000084", "CL:0000236"])
    facts, _ = labels_of_reference(obs, DataConfig(), None)
    assert facts["ontology"]["not_found"] == {"CL:000084 of T cell": "T cell (CL:0000084)"}


def test_other_vocabularies_and_an_empty_tree_are_left_alone():
    labels = ["CD14+ Monocyte", "CD19+ B", "Dendritic", "monocyte"]
    facts, tree = labels_of_reference(obs_of(labels), DataConfig(), None)
    assert tree is None and "ontology" not in facts and set(facts["labels"]) == set(labels)
    facts, tree = labels_of_reference(obs_of(BLOOD), DataConfig(), LabelTree({}))
    assert set(facts["labels"]) == set(BLOOD) and not facts["labels_above"]


def test_truth_in_other_words():
    said = in_words_of(
        pd.Series(["T lymphocyte", "CL:0000236", "B cell", "x"]), ["T cell", "B cell"]
    )
    assert list(said) == ["T cell", "B cell", "B cell", "x"]
