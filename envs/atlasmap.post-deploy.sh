#!/usr/bin/env bash
# Run by Snakemake in the new conda environment: installs atlasmap itself. ATLASMAP_SOURCE names the
# checkout; without it, the directory Snakemake was started in must be one.
set -euo pipefail
source=${ATLASMAP_SOURCE:-$PWD}
test -f "$source/pyproject.toml" || {
    echo "no checkout of atlasmap at $source: set ATLASMAP_SOURCE to it" >&2
    exit 1
}
python -m pip install --no-deps "$source"
