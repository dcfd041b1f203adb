"""The tasks of `make trust`: which batches are the reference, which the query, what is left out."""

from collections.abc import Iterator
from dataclasses import dataclass

from made import BY_LABEL, FEW

PBMC, IFNB, PANCREAS = "pbmc_3chemistries", "pbmc_ifnb_4samples", "pancreas_5technologies"
LINES, SIMULATED = "cell_lines", "simulated_atlas"
CHEMISTRIES = ("3pv1", "3pv2", "5p")
TECHNOLOGIES = ("celseq", "celseq2", "fluidigmc1", "indrop", "smartseq2")
LEAST = 15  # query cells of a label that is left out, for it to be scored
# Labels with a sibling that stays in the reference.
SIBLINGS = {"T_CD8", "T_CD4", "FCGR3A+ Monocytes", "CD14+ Monocytes", "CD4 T cells", "CD8 T cells",
            "delta"}  # fmt: skip
# What stands above labels.
BLOOD = {"T_CD4": "T", "T_CD8": "T", "T": "lymphoid", "NK": "lymphoid", "B": "lymphoid",
         "Mono_CD14": "Mono", "Mono_CD16": "Mono", "Mono": "myeloid", "DC": "myeloid"}  # fmt: skip
LINEAGES = {f"L{i}.{k}": f"L{i}" for i in range(5) for k in range(3)}
TREES = {
    PBMC: BLOOD,
    IFNB: {"CD4 T cells": "T", "CD8 T cells": "T", "T": "lymphoid", "B cells": "lymphoid",
           "CD14+ Monocytes": "monocytes", "FCGR3A+ Monocytes": "monocytes"},
    PANCREAS: {"alpha": "endocrine", "beta": "endocrine", "delta": "endocrine",
               "ductal": "exocrine", "acinar": "exocrine"},
    SIMULATED: LINEAGES, FEW: LINEAGES, BY_LABEL: LINEAGES,
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One mapping: batches of a data set, and labels that the reference is without."""

    group: str
    data: str
    reference: tuple[str, ...]
    query: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder, and in tables."""
        left = "+".join(self.left_out) or "none"
        return f"{self.data}/{'+'.join(self.query)}/{left}/{self.seed}".replace(" ", "_")


def pbmc() -> Iterator[Task]:
    """Three rotations of the chemistries; onto 3'v1 with three seeds."""
    monocytes = ("Mono_CD14", "Mono_CD16")
    for query in CHEMISTRIES:
        rest = tuple(name for name in CHEMISTRIES if name != query)
        for left in ((), ("B",), ("NK",), monocytes, ("T_CD8",), ("DC",)):
            for seed in (0, 1, 2) if query == "3pv1" else (0,):
                yield Task("PBMC", PBMC, rest, (query,), left, seed)


def ifnb() -> Iterator[Task]:
    """Control onto stimulated with three seeds, one donor onto the other; each label left out."""
    labels = ("B cells", "CD4 T cells", "CD14+ Monocytes", "FCGR3A+ Monocytes", "CD8 T cells")
    for left in ((), *((label,) for label in labels)):
        for seed in (0, 1, 2) if not left else (0,):
            control, stimulated = ("ctrl101", "ctrl107"), ("stim101", "stim107")
            yield Task("IFN-β", IFNB, control, stimulated, left, seed)
        yield Task("donor", IFNB, ("ctrl101",), ("ctrl107",), left)
        yield Task("donor", IFNB, ("ctrl107",), ("ctrl101",), left)


def pancreas() -> Iterator[Task]:
    """Each technology from the other four."""
    for query in TECHNOLOGIES:
        rest = tuple(name for name in TECHNOLOGIES if name != query)
        for left in ((), ("ductal",), ("acinar",), ("delta",)):
            yield Task("pancreas", PANCREAS, rest, (query,), left)


def lines() -> Iterator[Task]:
    """Two plates of CEL-seq2 onto a third and onto Drop-seq, each line left out."""
    plates = ("celseq2_5lines_p1", "celseq2_5lines_p2")
    for left in ((), *((line,) for line in ("A549", "H838", "H1975", "H2228", "HCC827"))):
        yield Task("lines", LINES, plates, ("celseq2_5lines_p3", "dropseq_3lines"), left)


def simulated() -> Iterator[Task]:
    """Simulated atlases, whose L3.1 only the query has."""
    for name, n, query in ((SIMULATED, 6, "batch"), (FEW, 2, "query"), (BY_LABEL, 4, "query")):
        first = n if query == "batch" else 0
        batches = tuple(f"{query}{first + k}" for k in range(2))
        reference = tuple(f"batch{k}" for k in range(n))
        yield Task("simulated", name, reference, batches, ("L3.1",))


def all_tasks() -> list[Task]:
    """Every task, in the order of the table."""
    return [task for kind in (pbmc, ifnb, pancreas, lines, simulated) for task in kind()]
