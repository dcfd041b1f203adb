"""What the workflow makes of config and sheet: targets, files, flags, resources."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from parts import CHECKS, ROWS, atlas_of

from atlasmap.errors import AtlasmapError

TAKEN = {"reference": {"scvi_tools": "model.pt"}, "variants": ["fixed"]}
QUERY = ROWS[1:]
W = SimpleNamespace(
    atlas="t", seed="0", variant="fixed", strategy="per_batch", folder="scanvi_fixed"
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNAKEMAKE_SLURM_PARTITIONS", raising=False)
    (tmp_path / "model.pt").touch()
    (tmp_path / "adata.h5ad").touch()
    return tmp_path


# --- targets

TOP = "results/t/"
OF_QUERIES = {"atlas.h5ad", "explorer.html", "benchmark/certificates.csv"}
OF_LABELS = {"benchmark/classification.csv", "figures/reliability.svg"}
OF_BOTH = {"labels.csv", "benchmark/trust.csv", "benchmark/opinions.csv", "benchmark/gene_gap.csv"}
ALWAYS = {"data/contract.json", "benchmark/history.csv"}
SCIB = {"benchmark/scib.csv", "figures/scib_table.svg"}
CASES = {
    "plain": ({}, ROWS, ALWAYS | OF_QUERIES | OF_LABELS | OF_BOTH | SCIB, set()),
    "no query": ({}, ROWS[:1], ALWAYS | OF_LABELS | SCIB, OF_QUERIES | OF_BOTH),
    "no labels": ({"labels": "none"}, ROWS, ALWAYS | OF_QUERIES | SCIB, OF_LABELS | OF_BOTH),
    "scope labels": ({"benchmark": {"scope": "labels"}}, ROWS, OF_BOTH, SCIB),
    "scope none": ({"benchmark": {"scope": "none"}}, ROWS, OF_BOTH | OF_LABELS, SCIB),
    "de novo": ({"strategies": ["de_novo"]}, ROWS, OF_BOTH, {"benchmark/certificates.csv"}),
    "both": ({"strategies": ["de_novo", "joint"]}, ROWS, {"benchmark/certificates.csv"}, set()),
    "taken": (TAKEN, QUERY, OF_QUERIES, SCIB | {"benchmark/gene_gap.csv"}),
    "citeseq": ({"modality": "citeseq"}, ROWS, OF_BOTH | {"figures/protein_dots.svg"}, set()),
}


@pytest.mark.parametrize("prefix", ["", "moved/"])  # which Snakemake puts before targets itself
@pytest.mark.parametrize(("config", "rows", "there", "absent"), CASES.values(), ids=CASES)
def test_targets(folder, config, rows, there, absent, prefix):
    atlas = atlas_of(folder, config, rows, prefix=prefix)
    found = {path.removeprefix(TOP) for path in atlas.reported(None)}
    assert there <= found and not absent & found
    assert len(found) == len(atlas.reported(None)) and all("{" not in path for path in found)


@pytest.mark.parametrize(
    ("config", "rows", "models"),
    [
        ({}, ROWS, ["scvi", "scanvi_prefix", "scanvi_fixed", "scanvi_linear"]),
        ({"variants": ["linear"]}, ROWS, ["scvi", "scanvi_linear"]),
        ({"labels": "none"}, ROWS, ["scvi"]),
        ({"modality": "citeseq"}, ROWS, ["totalvi"]),
        (TAKEN, QUERY, ["scanvi_fixed"]),
        (TAKEN | {"labels": "none", "variants": ["fixed"]}, QUERY, ["scvi"]),
    ],
)
def test_models_of_a_reference(folder, config, rows, models):
    atlas = atlas_of(folder, config, rows)
    assert models == atlas.REFERENCE_FOLDERS
    cards = [path for path in atlas.reported(None) if path.endswith("card.md")]
    assert cards == [f"{TOP}seed0/reference/{model}/card.md" for model in models]


@pytest.mark.parametrize("seeds", [[0], [3, 1]])
@pytest.mark.parametrize("strategies", [["per_batch"], ["joint", "frozen"]])
@pytest.mark.parametrize("variants", [["fixed"], ["prefix", "linear"]])
def test_every_mapping_is_a_target_and_scored(folder, seeds, strategies, variants):
    atlas = atlas_of(folder, dict(seeds=seeds, strategies=strategies, variants=variants))
    all_of_them = {
        f"{TOP}seed{s}/mapping/{v}/{t}/atlas.h5ad"
        for s in seeds for v in variants for t in strategies
    }  # fmt: skip
    assert all_of_them <= set(atlas.reported(None))
    assert [run["atlas"] for run in atlas.label_runs()] == [p for *_, p in atlas.mappings(seeds)]
    opinions = {run["atlas"] for run in atlas.opinion_runs()}
    assert len(opinions) == len(seeds) * len(strategies) * (len(variants) + 1)  # and scVI's
    assert len(atlas.labels_of_seeds()) == (len(seeds) if len(seeds) > 1 else 0)
    final = atlas.FINAL
    assert (final.variant, final.strategy) == (variants[0], strategies[0])
    assert atlas.of_final("x") == [
        f"results/{{atlas}}/seed{seeds[0]}/mapping/{variants[0]}/{strategies[0]}/x"
    ]


@pytest.mark.parametrize(("scope", "n"), [("none", 0), ("labels", 8), ("full", 8)])
def test_opinions_by_scope(folder, scope, n):
    atlas = atlas_of(folder, {"benchmark": {"scope": scope}})
    assert len(atlas.opinion_runs()) == n and bool(atlas.OPINIONS) == bool(n)
    assert (scope == "full") is atlas.SCORED_BY_SCIB


def test_large_atlases_are_scored_one_embedding_a_job(folder):
    assert atlas_of(folder, {}).scib_parts(W) == [f"{TOP}benchmark/scib/seed0/together.csv"]
    large = atlas_of(folder, {"benchmark": {"split_above": 600}})
    names = [Path(path).stem for path in large.scib_parts(W)]
    assert names == list(large.embeddings(0)) and names[:2] == ["pca", "scvi"]
    assert large.runs_of(SimpleNamespace(seed=0, part="pca")) == [large.embeddings(0)["pca"]]


def test_a_module_must_fill_in_defaults(folder):
    with pytest.raises(AtlasmapError, match="CONFIG_DEFAULTS"):
        atlas_of(folder, {}, skip_validation=True)


# --- query batches


def test_batches_of_all_data_sets_are_sorted_and_owned(folder):
    rows = [*ROWS, "p\tp.h5ad\tquery\tb\t\t"]
    atlas = atlas_of(folder, {}, rows, {"q": ["b", "a/1"], "p": ["c"]})
    assert atlas.query_batches() == ["a~2F1", "b", "c"]
    assert [atlas.owner(batch).id for batch in atlas.query_batches()] == ["q", "q", "p"]
    assert atlas.queries(W)[0] == f"{TOP}data/queries/a~2F1.h5ad"
    twice = atlas_of(folder, {}, rows, {"q": ["b"], "p": ["b"]})
    with pytest.raises(AtlasmapError, match="BATCH_NAME_TWICE"):
        twice.query_batches()


@pytest.mark.parametrize(
    ("strategy", "targets", "latents"),
    [
        ("joint", ["joint/all/latent.h5ad"], ["joint/all/latent.h5ad"]),
        ("de_novo", ["de_novo/all/latent.h5ad"], ["de_novo/all/latent.h5ad"]),
        ("per_batch", ["per_batch/.mapped/+.json"],
         ["per_batch/x/latent.h5ad", "per_batch/y/latent.h5ad"]),
        ("frozen", ["frozen/.mapped/+.json"], ["frozen/x/latent.h5ad", "frozen/y/latent.h5ad"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "moved/"])
def test_targets_and_parameters_of_a_mapping(folder, strategy, targets, latents, prefix):
    """Snakemake places inputs itself; parameters say where they are."""
    mapping = {"mapping": {"batches_per_job": 20}}
    atlas = atlas_of(folder, mapping, prefix=prefix)
    top = f"{TOP}seed0/mapping/fixed/"
    assert atlas.mapped(0, "fixed", strategy) == [top + path for path in targets]
    found = atlas.latents(0, "fixed", strategy)
    assert found == [prefix + top + path for path in latents]


def test_jobs_that_are_done_stay_as_they_were_packed(folder):
    done = folder / f"{TOP}seed0/mapping/fixed/per_batch/.mapped"
    done.mkdir(parents=True)
    (done / "+.json").write_text('["x", "y"]')
    atlas = atlas_of(folder, {"mapping": {"batches_per_job": 1}})
    assert [Path(path).name for path in atlas.mapped(0, "fixed", "per_batch")] == ["+.json"]


@pytest.mark.parametrize("prefix", ["", "moved/"])
def test_a_users_file_is_where_it_is_and_what_is_fetched_is_placed(folder, prefix):
    rows = [*ROWS, "u\thttps://x.org/c.h5ad?download=1\tquery\tb\t\t"]
    atlas = atlas_of(folder, {}, rows, prefix=prefix)
    (mine,) = [atlas.source_path(atlas.DATASETS["r"])]
    assert mine == (str(folder / "r.h5ad") if prefix else "r.h5ad")
    assert atlas.source_path(atlas.DATASETS["u"]) == f"{TOP}data/sources/u.h5ad"
    assert atlas.fetch_flags(SimpleNamespace(source="u.h5ad")).split()[0] == (
        "'https://x.org/c.h5ad?download=1'"
    )
    (run,) = atlas.placed_runs([atlas.label_runs()[0]])
    assert run["atlas"].startswith(f"{prefix}results/t/seed0") and run["variant"] == "prefix"
    assert f"--probe={prefix}results/t/data/reference.h5ad" == atlas.PROBE


# --- flags


def test_flags_say_what_the_user_set_and_nothing_else(folder):
    config = {
        "scvi": {"n_latent": 7}, "data": {"n_top_genes": None, "memory_gb": 3},
        "scanvi": {"train": {"max_epochs": 3}}, "scanvi_linear": {"classification_ratio": 9},
        "unlabeled_category": "{it's}", "card": {"description": "of {atlas}"},
    }  # fmt: skip
    atlas = atlas_of(folder, config)

    def block(flag: str) -> dict:
        (word,) = shlex.split(flag)
        return json.loads(word.split("=", 1)[1])

    assert block(atlas.settings_of("scvi")(None)) == {"n_latent": 7}
    assert block(atlas.settings_of("umap")(None)) == {}
    assert block(atlas.settings_of("card")(None)) == {"description": "of {atlas}"}
    read = block(atlas.data_flag("n_top_genes")(None))
    assert read == {"data": {"n_top_genes": None}, "unlabeled_category": "{it's}"}
    linear = json.loads(shlex.split(atlas.held_out_models())[2].split("=", 1)[1])
    assert linear == {
        "variant": "linear", "scanvi": {"train": {"max_epochs": 3}, "classification_ratio": 9}
    }  # fmt: skip
    assert "--unlabeled='{it'\"'\"'s}'" in atlas.required_flags()


def test_rows_carry_what_a_job_depends_on(folder):
    atlas = atlas_of(folder, {})
    plain = {"id", "path", "role", "batch_key", "counts", "gene_id", "obs_filter"}
    assert set(atlas.row(atlas.QUERIES[0])) == plain
    assert atlas.row(atlas.QUERIES[0], "truth_key")["truth_key"] == "t"
    citeseq = atlas_of(folder, {"modality": "citeseq"})
    assert set(citeseq.row(citeseq.QUERIES[0])) == plain | set(citeseq.OF_PROTEINS)


@pytest.mark.parametrize(
    ("value", "flag", "key"), [(None, "", ""), ("none", "--no-ontology", "none")]
)
def test_a_reference_without_a_sheet_of_labels(folder, value, flag, key, monkeypatch):
    atlas = atlas_of(folder, {"label_tree": value})
    assert atlas.tree_of_reference() == flag
    monkeypatch.setitem(atlas.key_of_tree.__globals__, "INSTALLED", "")
    assert atlas.key_of_tree("t") == key


# --- resources


def asks(folder, config=None, partitions="", forecast=None, **how) -> list[tuple[int, int]]:
    """(minutes, MB) of three attempts with two inputs of 100 and 50 MB."""
    if partitions:
        (folder / "profiles/slurm").mkdir(parents=True)
        (folder / "profiles/slurm/partitions.yaml").write_text(f"partitions: {partitions}")
    if forecast:
        (folder / TOP).mkdir(parents=True, exist_ok=True)
        plan = {"resources": {"r": forecast}, "hours": 1, "device": "cpu"}
        (folder / TOP / "forecast.json").write_text(json.dumps(plan))
    found = atlas_of(folder, config or {}).needs("r", 1000, 60, **how)
    size = type("Input", (list,), {"size_mb": 150, "size_files_mb": [100, 50]})([1, 2])
    return [
        (found["runtime"](None, size, attempt), found["mem_mb"](None, size, attempt))
        for attempt in (1, 2, 3)
    ]


SMALL = "{a: {max_runtime: 90, max_mem_mb: 2500}, b: {max_gpu: 1, max_runtime: 0-02:00:00}}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [(60, 1000), (120, 2000), (180, 3000)]),
        ({"mb_per_mb": 20}, [(60, 4000), (120, 8000), (180, 12000)]),
        ({"mb_per_mb": 20, "largest": True}, [(60, 3000), (120, 6000), (180, 9000)]),
        ({"minutes_per_input": 15}, [(90, 1000), (180, 2000), (270, 3000)]),
        ({"forecast": {"mem_mb": 70, "runtime": 8}}, [(8, 70), (16, 140), (24, 210)]),
        ({"partitions": SMALL}, [(60, 1000), (120, 2000), (120, 3000)]),
        ({"partitions": "{a: {max_runtime: 90, max_mem_mb: 2500}}"},
         [(60, 1000), (90, 2000), (90, 2500)]),
        ({"partitions": SMALL, "gpu": True}, [(60, 1000), (120, 2000), (120, 3000)]),
        ({"partitions": SMALL, "gpu": True, "config": {"device": "cpu"}},
         [(60, 1000), (120, 2000), (120, 3000)]),
        ({"partitions": "{}"}, [(60, 1000), (120, 2000), (180, 3000)]),
        ({"partitions": "{a: }"}, [(60, 1000), (120, 2000), (180, 3000)]),
        ({"mb_per_mb": 20, "streams": True, "config": {"data": {"memory_gb": 2}}},
         [(60, 2500), (120, 5000), (180, 7500)]),
        ({"mb_per_mb": 20, "config": {"data": {"memory_gb": 2}}},
         [(60, 4000), (120, 8000), (180, 12000)]),
    ],
)  # fmt: skip
def test_what_jobs_ask_for(folder, given, expected):
    assert asks(folder, **given) == expected


@pytest.mark.parametrize(("device", "gpu"), [("auto", 1), ("cuda", 1), ("any", 1), ("cpu", 0)])
def test_jobs_on_a_gpu(folder, device, gpu):
    found = atlas_of(folder, {"device": device}).needs("r", 1, 1, gpu=True)
    assert (found["gpu"], found["device"]) == (gpu, device)
    assert found["running"].split() == ["--checkpoint_minutes", "5.0"]
    assert set(atlas_of(folder, {}).needs("r", 1, 1)) == {"attempt", "mem_mb", "runtime"}


@pytest.mark.parametrize("text", ["[1]", "partitions: 3", "partitions: {a: {max_mem_mb: x}}", "{"])
def test_a_partition_file_that_is_none(folder, text):
    (folder / "profiles/slurm").mkdir(parents=True)
    (folder / "profiles/slurm/partitions.yaml").write_text(text)
    with pytest.raises(AtlasmapError, match="PARTITIONS_INVALID"):
        atlas_of(folder, {})


@pytest.mark.parametrize(
    "given",
    [{"gpus": 1}, {"slurm_extra": "'--job-name=x'"}, {"slurm_extra": "--qos=a -J x"}],
)
def test_resources_that_blind_the_plugin_are_refused(folder, given):
    with pytest.raises(AtlasmapError, match="SLURM_RESOURCE"):
        atlas_of(folder, {}).check_slurm_resources(given)


def test_other_resources_are_not(folder):
    check = atlas_of(folder, {}).check_slurm_resources
    check({"slurm_extra": "'--mail-type=END --nodelist=a-Jb'", "gpu": 1})
    check({"slurm_extra": None})


# --- what is there already


def contract(folder, dataset: str, config: str) -> None:
    (folder / f"{TOP}data").mkdir(parents=True)
    queries = {"x": {"n_cells": 5, "dataset": dataset}}
    said = {"queries": queries, "configfiles": [config]}
    (folder / f"{TOP}data/contract.json").write_text(json.dumps(said))


def test_a_row_that_is_gone_is_said(folder):
    contract(folder, "gone", "c.yaml")
    with pytest.raises(AtlasmapError, match="CELLS_LOST") as error:
        atlas_of(folder, {})
    assert "x (5 cells, gone)" in error.value.found


def test_an_atlas_of_another_config_is_not_overwritten(folder):
    contract(folder, "q", "c.yaml")
    path = folder / f"{TOP}data/contract.json"
    check = CHECKS.check_same_atlas
    check(path, [Path("d.yaml")], ["q"])  # the other is not there any more
    for text, taken in (("atlas: t", True), ("atlas: u", False), ("[", False)):
        Path("c.yaml").write_text(text)
        check(path, [Path("c.yaml")], ["q"])
        if taken:
            with pytest.raises(AtlasmapError, match="ATLAS_TAKEN"):
                check(path, [Path("d.yaml")], ["q"])
        else:
            check(path, [Path("d.yaml")], ["q"])
