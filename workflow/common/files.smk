# Where files are, and which there will be.

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

BUNDLE = ["settings.json", "registry.json", "weights.safetensors"]
BUNDLE += ["history.csv", "golden.npz"]
# What a reference learned of its own labels.
LEARNED = ["calibration.json", "profiles.npz"]


def model_folder(variant):
    """Folder of the reference model that is mapped onto."""
    return variant if variant in ("scvi", "totalvi") else f"scanvi_{variant}"


def bundle_in(folder, *more):
    """Files of the bundle in a folder below results/{atlas}, and `more` beside them."""
    return [f"results/{{atlas}}/{folder}/{file}" for file in [*BUNDLE, *more]]


def reference_of(w, *more):
    """The bundle that a variant's queries are mapped onto, and `more` beside it."""
    top = f"results/{w.atlas}/seed{w.seed}/reference/{model_folder(w.variant)}"
    return [f"{top}/{file}" for file in [*BUNDLE, *more]]


def cards_in(folder):
    """A model card in a folder below results/{atlas}; its page is in Snakemake's report."""
    page = report(
        f"results/{{atlas}}/{folder}/card.html",
        caption="../report/model_card.rst",
        category="Model cards",
        labels={"model": "{folder}", "seed": "{seed}"},
    )
    return [
        *(f"results/{{atlas}}/{folder}/card.{kind}" for kind in ("md", "json")),
        page,
    ]


def in_mapping(*files):
    """Files of a mapping."""
    top = "results/{atlas}/seed{seed}/mapping/{variant}/{strategy}"
    return [f"{top}/{file}" for file in files]


def of_final(*files):
    """Files of the final mapping."""
    top = f"results/{{atlas}}/seed{FINAL.seed}/mapping/{FINAL_MODEL}/{FINAL.strategy}"
    return [f"{top}/{file}" for file in files]


def folder_of(name):
    """The folder of an input's first file, as a parameter."""
    return lambda w, input: os.path.dirname(
        input[name] if isinstance(input[name], str) else input[name][0]
    )


def one_of(values):
    """A wildcard that is one of these; of none it is nothing at all."""
    return "|".join(map(re.escape, values)) or "(?!)"


# The reference's models that queries are mapped onto, and all of them.
MAPPED_ONTO = list(map(model_folder, MODELS))
OF_ALL = [] if TAKEN or CITESEQ else ["scvi"]
REFERENCE_FOLDERS = list(dict.fromkeys([*OF_ALL, *MAPPED_ONTO]))
FIRST_REFERENCE = f"{TOP}/seed{CONFIG.seeds[0]}/reference/{REFERENCE_FOLDERS[-1]}"
FINAL_REFERENCE = f"seed{FINAL.seed}/reference/{model_folder(FINAL_MODEL)}"
# Without training nothing else makes sure that every query is checked before the first is mapped.
CONTRACT = ancient(f"{TOP}/data/contract.json") if TAKEN else []
DENOISED = ["denoised.h5ad"] if CITESEQ else []
