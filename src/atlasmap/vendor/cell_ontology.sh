#!/bin/sh
# The Cell Ontology as a table, from the release that a package of CELLxGENE's carries (100 MB): id,
# name, direct parents, synonyms, what replaces an obsolete term, and whether CELLxGENE groups cells
# by it (as a subclass or a class). Needs Python and a network.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet cellxgene-ontology-guide==1.11.1 zstandard==0.25.0
"$work/env/bin/python" - "$here/cell_ontology.tsv.gz" <<'END'
import gzip
import json
import sys
from importlib.resources import files

import zstandard

RELEASE = "v2026-03-26"
data = files("cellxgene_ontology_guide") / "data"
with (data / f"CL-ontology-{RELEASE}.json.zst").open("rb") as file:
    terms = json.loads(zstandard.ZstdDecompressor().stream_reader(file).read())
groups = {
    name: kind
    for kind in ("class", "subclass")
    for name in json.loads((data / f"cell_{kind}_list.json").read_text())
}
lines = [
    f"# Cell Ontology, release {RELEASE}, https://obofoundry.org/ontology/cl, licence CC BY 4.0",
    "id\tname\tparents\tsynonyms\treplaced_by\tgroup",
]
for name, term in sorted(terms.items()):
    obsolete = term["deprecated"]
    if obsolete and not term.get("replaced_by"):
        continue
    parents = sorted(above for above, far in term["ancestors"].items() if far == 1)
    values = name, term["label"], " ".join(parents), "|".join(term.get("synonyms", []))
    replaced = term.get("replaced_by", "") if obsolete else ""
    lines.append("\t".join([*values, replaced, "" if obsolete else groups.get(name, "")]))
text = "\n".join(lines) + "\n"
assert text.count("\t") == 5 * (len(lines) - 1)
with open(sys.argv[1], "wb") as file:
    file.write(gzip.compress(text.encode(), mtime=0))
print(f"{len(lines) - 2} terms")
END
