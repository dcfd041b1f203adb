# Paths of result files.

import os
import re

BUNDLE = ["settings.json", "registry.json", "weights.safetensors"]
BUNDLE += ["history.csv", "golden.npz"]
# Files of the reference's calibration.
LEARNED = ["calibration.json", "profiles.npz"]


def model_folder(variant):
    """Returns the folder name of a variant's reference model."""
    return variant if variant in ("scvi", "totalvi") else f"scanvi_{variant}"


def bundle_in(folder, *more):
    """Returns the bundle's files in a folder below results/{atlas}, and `more` in that folder."""
    return [f"results/{{atlas}}/{folder}/{file}" for file in [*BUNDLE, *more]]


def reference_of(w, *more):
    """Returns the files of the bundle that queries are mapped onto, and `more` in its folder."""
    top = f"results/{w.atlas}/seed{w.seed}/reference/{model_folder(w.variant)}"
    return [f"{top}/{file}" for file in [*BUNDLE, *more]]


def cards_in(folder):
    """Returns the model card's files in a folder below results/{atlas}.

    The HTML page is included in Snakemake's report.
    """
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
    """Returns files of a mapping, with wildcards."""
    top = "results/{atlas}/seed{seed}/mapping/{variant}/{strategy}"
    return [f"{top}/{file}" for file in files]


def of_final(*files):
    """Returns files of the final mapping."""
    top = f"results/{{atlas}}/seed{FINAL.seed}/mapping/{FINAL_MODEL}/{FINAL.strategy}"
    return [f"{top}/{file}" for file in files]


def folder_of(name):
    """Returns a parameter function: the folder of the (first) file of an input."""
    return lambda w, input: os.path.dirname(
        input[name] if isinstance(input[name], str) else input[name][0]
    )


def one_of(values):
    """Returns a wildcard constraint that matches one of the values; nothing if there are none."""
    return "|".join(map(re.escape, values)) or "(?!)"


# Folders of reference models: those that queries are mapped onto, then all.
MAPPED_ONTO = list(map(model_folder, MODELS))
OF_ALL = [] if TAKEN or CITESEQ else ["scvi"]
REFERENCE_FOLDERS = list(dict.fromkeys([*OF_ALL, *MAPPED_ONTO]))
FIRST_REFERENCE = f"{TOP}/seed{CONFIG.seeds[0]}/reference/{REFERENCE_FOLDERS[-1]}"
FINAL_REFERENCE = f"seed{FINAL.seed}/reference/{model_folder(FINAL_MODEL)}"
# With a given reference, only this input ensures that all queries are checked before the first is
# mapped.
CONTRACT = ancient(f"{TOP}/data/contract.json") if TAKEN else []
DENOISED = ["denoised.h5ad"] if CITESEQ else []
