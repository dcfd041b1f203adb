"""The Cell Ontology (Diehl et al. 2016, J. Biomed. Semantics 7:44): terms of labels.

The terms are in vendor/cell_ontology.tsv.gz, whose first line gives release and licence.
"""

import csv
import difflib
import gzip
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import pandas as pd

RELEASE = "v2026-03-26"  # of vendor/cell_ontology.tsv.gz
ID = re.compile(r"CL[:_]\d+", re.IGNORECASE)
DIGITS = 7  # per id
GREEK = str.maketrans({"α": "alpha ", "β": "beta ", "γ": "gamma ", "δ": "delta "})


def plain(label: str) -> str:
    """Normalise a label for look-up: no case, Greek letters spelled out, `_,/-` as spaces, and no
    plural s at the end."""
    words = re.sub(r"[\s_,/-]+", " ", label.casefold().translate(GREEK)).strip()
    return re.sub(r"(?<=[a-rt-z])s$", "", words)


@dataclass(frozen=True)
class Ontology:
    """The terms: `names` and direct `parents` by id; `groups`: "class" or "subclass" for the terms
    that CELLxGENE groups cell types by; `known`: id by id, `plain` name or `plain` synonym."""

    names: dict[str, str]
    parents: dict[str, list[str]]
    groups: dict[str, str]
    known: dict[str, str]

    def term(self, label: str) -> str | None:
        """Return the id of the term with this id, name or synonym; None without one."""
        if ID.fullmatch(label.strip()):
            return self.known.get(label.strip().upper().replace("_", ":"))
        return self.known.get(plain(label))

    def nearest(self, label: str) -> str:
        """Return name and id, as text, of the term that is spelled most like a label, or "none"."""
        if ID.fullmatch(label.strip()):
            number = re.sub("[^0-9]", "", label).zfill(DIGITS)
            close = difflib.get_close_matches(f"CL:{number}", self.names, 1, 0.5)
        else:
            close = difflib.get_close_matches(plain(label), self.known, 1, 0.5)
        term = self.known[close[0]] if close else None
        return f"{self.names[term]} ({term})" if term else "none"

    @cached_property
    def lineages(self) -> dict[str, dict[str, int]]:
        """Map each term to its ancestors and itself, with the smallest number of steps to each."""
        out: dict[str, dict[str, int]] = {}

        def above(term: str) -> dict[str, int]:
            if term not in out:
                found = {term: 0}
                for parent in self.parents[term]:
                    for name, far in above(parent).items():
                        found[name] = min(far + 1, found.get(name, far + 1))
                out[term] = found
            return out[term]

        for term in self.names:
            above(term)
        return out


@cache
def cell_ontology() -> Ontology:
    """Load the release that is part of the package (cached)."""
    path = files("atlasmap") / "vendor/cell_ontology.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()[1:]
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    terms = {row["id"]: row for row in rows if not row["replaced_by"]}
    names = {term: row["name"] for term, row in terms.items()}
    synonyms: dict[str, set[str]] = {}
    for term, row in terms.items():
        for word in filter(None, row["synonyms"].split("|")):
            synonyms.setdefault(plain(word), set()).add(term)
    known = {word: min(of) for word, of in synonyms.items() if len(of) == 1}
    known |= {plain(name): term for term, name in names.items()}
    known |= {term: term for term in terms}
    known |= {row["id"]: row["replaced_by"] for row in rows if row["replaced_by"] in terms}
    parents = {
        term: [above for above in row["parents"].split() if above in terms]
        for term, row in terms.items()
    }
    groups = {term: row["group"] for term, row in terms.items() if row["group"]}
    return Ontology(names, parents, groups, known)


@dataclass(frozen=True)
class Vocabulary:
    """Labels matched to the ontology: `terms` (label → id), `renamed` (old → new label), and
    `not_found` (label → nearest term)."""

    terms: dict[str, str]
    renamed: dict[str, str]
    not_found: dict[str, str]

    @property
    def found(self) -> bool:
        """Whether the labels are from the ontology: at least half of them, and at least two, match,
        or any is written as an id."""
        by_id = any(ID.fullmatch(word) for word in (*self.renamed, *self.not_found))
        return by_id or len(self.terms) >= max(2, len(self.not_found))


def vocabulary_of(labels: list[str], ids: dict[str, str]) -> Vocabulary:
    """Match labels to the Cell Ontology; `ids` (label → term id) may give terms of some labels.

    Labels that are written as ids, and different labels of one term, are renamed to the term's
    name.
    """
    ontology = cell_ontology()
    of_word = {label: term for label in labels if (term := ontology.term(label))}
    words = Counter(of_word.values())
    renamed = {
        label: ontology.names[term]
        for label, term in of_word.items()
        if (ID.fullmatch(label) or words[term] > 1) and label != ontology.names[term]
    }
    terms, not_found = {}, {}
    for label in labels:
        beside = ids.get(label, "")
        term = ontology.term(beside) or of_word.get(label)
        if term:
            terms[renamed.get(label, label)] = term
        if ID.fullmatch(beside) and not ontology.term(beside):
            not_found[f"{beside} of {label}"] = ontology.nearest(beside)
        elif not term:
            not_found[label] = ontology.nearest(label)
    return Vocabulary(terms, renamed, not_found)


def in_words_of(values: pd.Series, names: Collection[str]) -> pd.Series:
    """Replace values that are a synonym of one of `names`, by their Cell Ontology term, with that
    name."""
    others = set(values) - set(names)
    if not others:
        return values
    ontology = cell_ontology()
    name_of = {term: name for name in names if (term := ontology.term(name))}
    to = {word: name_of.get(ontology.term(word) or "", word) for word in others}
    return values.map(lambda word: to.get(word, word))
