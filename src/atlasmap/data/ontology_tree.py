"""The tree that labels have by their terms of the Cell Ontology."""

import numpy as np

from atlasmap.data.label_tree import LabelTree
from atlasmap.data.ontology import cell_ontology

# Groups of CELLxGENE's by what cells do, their shape or germ layer: no branches where a label is
# looked for.
NO_BRANCHES = {
    "secretory cell", "motile cell", "stuff accumulating cell", "contractile cell", "ciliated cell",
    "precursor cell", "progenitor cell", "supporting cell", "abnormal cell", "phagocyte",
    "transit amplifying cell", "stem cell", "interstitial cell", "seromucus secreting cell",
    "glandular secretory epithelial cell", "columnar/cuboidal epithelial cell",
    "squamous epithelial cell", "stratified epithelial cell", "transitional epithelial cell",
    "endo-epithelial cell", "ecto-epithelial cell", "meso-epithelial cell", "ectodermal cell",
    "mesodermal cell",
}  # fmt: skip


def owners(terms: dict[str, str]) -> dict[str, str]:
    """The label that is a term itself: of several with one term the one that is a word for it, if
    any is. Others are below it."""
    out, ontology = {}, cell_ontology()
    for term in sorted(set(terms.values())):
        labels = [label for label, of in terms.items() if of == term]
        named = [label for label in labels if ontology.term(label) == term]
        if len(labels) == 1 or named:
            out[term] = (named or labels)[0]
    return out


def tree_of_terms(terms: dict[str, str]) -> LabelTree:
    """The tree of labels (label → id of its term): labels that are above others, and between them
    the groups of CELLxGENE's that tell labels apart and do not cross.

    The ontology has several parents a term; of groups that cross, labels go before others, a
    class before a subclass, and one that is nearer to its labels before others.
    """
    ontology, owner = cell_ontology(), owners(terms)
    far: dict[str, dict[str, int]] = {}
    for label, term in terms.items():
        for above, steps in ontology.lineages[term].items():
            far.setdefault(above, {})[label] = steps
    shared = set(terms.values()) - set(owner)
    groups = {
        above
        for above in far.keys() & ontology.groups.keys()
        if ontology.names[above] not in NO_BRANCHES and 1 < len(far[above]) < len(terms)
    }

    def order(above: str):
        given = above in owner or above in shared
        nearness = float(np.mean(list(far[above].values())))
        return not given, ontology.groups.get(above) != "class", nearness, above

    owned = set(owner.values())
    chosen = {frozenset([label]): label for label in terms if label not in owned}
    for above in sorted({*owner, *shared, *groups}, key=order):
        own = frozenset(far[above])
        crossing = any(own & other and not (own <= other or other <= own) for other in chosen)
        if above in owner:
            chosen[frozenset([owner[above]]) if crossing else own] = owner[above]
        elif not crossing:
            chosen.setdefault(own, ontology.names[above])
    nodes, parents = sorted(chosen, key=len), {}
    for k, own in enumerate(nodes):
        larger = [other for other in nodes[k + 1 :] if own < other]
        if larger:
            parents[chosen[own]] = chosen[larger[0]]
    return LabelTree(parents)
