"""Label tree from the Cell Ontology terms of the labels."""

import numpy as np

from atlasmap.data.label_tree import LabelTree
from atlasmap.data.ontology import cell_ontology

# CELLxGENE groups by function, shape or germ layer, which are not used as branches: cell types are
# not looked up by these.
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
    """Map each term to the label that stands for it in the tree.

    If several labels have the term, this is the one that is the term's name or a synonym; the
    others are placed below it. A term with several labels, none of which names it, is left out.
    """
    out, ontology = {}, cell_ontology()
    for term in sorted(set(terms.values())):
        labels = [label for label, of in terms.items() if of == term]
        named = [label for label in labels if ontology.term(label) == term]
        if len(labels) == 1 or named:
            out[term] = (named or labels)[0]
    return out


def tree_of_terms(terms: dict[str, str]) -> LabelTree:
    """Build the tree of labels (`terms`: label → term id).

    Inner nodes are labels that are ancestors of others, and CELLxGENE groups that contain some but
    not all labels. The ontology is no tree (several parents per term), so nodes whose label sets
    overlap without nesting are dropped; a label then becomes a leaf. Order of preference: labels,
    classes, subclasses; then the smaller mean distance to their labels.
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
