# Checks of a trained reference given in the config: a bundle, or a save of scvi-tools.

import json
from pathlib import Path


def check_reference(config, given):
    """Raise CONFIG_REFERENCE if the keys of a given reference contradict each other or the rest of
    the config; raises URL_SCHEME."""
    reference, mend = config.reference, ""
    of_scvi_tools, is_given = (
        reference.scvi_tools,
        reference.bundle or reference.scvi_tools,
    )
    for key in ("scvi_tools", "adata"):
        if "://" in (path := getattr(reference, key) or ""):
            check_url(path, f"reference.{key}")
    if not is_given and not reference.adata:
        return
    idle = [
        key for key in given if key in ("scvi", "totalvi") or key.startswith("scanvi")
    ]
    if not is_given:
        found, mend = "reference.adata alone", "give reference.scvi_tools as well"
    elif reference.bundle and of_scvi_tools:
        found, mend = (
            "reference.bundle and reference.scvi_tools",
            "leave one of them out",
        )
    elif reference.bundle and reference.adata:
        found, mend = (
            "reference.adata beside a bundle",
            "leave it out: a bundle has its latent",
        )
    elif "://" in (of_scvi_tools or "") and not reference.adata:
        found, mend = (
            "a model at a URL without its cells",
            "give reference.adata as well",
        )
    elif idle:
        found = f"settings of a training: {listed(idle)}"
        mend = "leave them out: the reference is trained already"
    elif of_scvi_tools and config.modality == "citeseq":
        if config.labels == "given":
            found = "labels: given, of a model that scvi-tools saved"
            mend = "set labels: none: TOTALVI has no classifier"
    elif (
        of_scvi_tools
        and config.labels == "given"
        and len(given.get("variants", [])) != 1
    ):
        found = f"variants: {config.variants}"
        mend = "name its classifier, which atlasmap import-scvi says: variants: [prefix] if it was "
        mend += (
            "saved before scvi-tools 1.1, else mostly [fixed]; for SCVI labels: none"
        )
    if mend:
        raise AtlasmapError(
            "CONFIG_REFERENCE",
            expected="one trained reference, and what it leaves open",
            found=found,
            mend=mend,
        )


def about_bundle(folder, atlas):
    """Returns (kind, variant, classifier) from settings.json of a bundle.

    Raises BUNDLE_MISSING, BUNDLE_ALTERED, and CONFIG_REFERENCE if this run would write there.
    """
    about = folder / "settings.json"
    if not about.is_file():
        raise AtlasmapError(
            "BUNDLE_MISSING",
            expected="reference.bundle: the folder of a bundle, with settings.json",
            found=f"no {about}",
            mend="correct the path; what scvi-tools saved goes under reference.scvi_tools",
        )
    if folder.resolve().is_relative_to(Path(f"results/{atlas}").resolve()):
        raise AtlasmapError(
            "CONFIG_REFERENCE",
            expected="a reference outside the results of this very atlas",
            found=f"{folder}, where this run would write",
            mend="give `atlas` another name, or move the bundle elsewhere",
        )
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        return said.get("kind"), said.get("variant"), said.get("classifier")
    except (ValueError, AttributeError) as error:
        raise AtlasmapError(
            "BUNDLE_ALTERED",
            expected=f"{about} as it was written",
            found=f"{error}",
            mend="copy the bundle again from where it came",
        ) from error


def variants_with(config, given, folder):
    """Returns the variant of the bundle in `folder`, as a list; the config's if it has none.

    Raises CONFIG_REFERENCE if the config asks for another model, and errors of `about_bundle`.
    """
    kind, variant, head = about_bundle(folder, config.atlas)
    citeseq, nameless = kind == "totalvi", variant is None and not head
    name = "totalVI" if citeseq else "scVI" if nameless else f"scANVI ({variant})"
    if citeseq != (config.modality == "citeseq"):
        found = f"{name}, for modality: {config.modality}"
        mend = f"set modality: {'citeseq' if citeseq else 'rna'}"
    elif nameless != (config.labels == "none"):
        found = f"{name}, which has no labels" if nameless else name
        mend = "set labels: none" if nameless else "leave out labels: none"
    elif variant and "variants" in given and given["variants"] != [variant]:
        found = f"a {variant} classifier"
        mend = f"set variants: [{variant}], or leave it out"
    else:
        return [variant] if variant else config.variants
    raise AtlasmapError(
        "CONFIG_REFERENCE",
        expected=f"a reference for labels: {config.labels}, variants: {config.variants}",
        found=f"{found} in {folder}",
        mend=mend,
    )
