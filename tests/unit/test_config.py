"""The config: schemas in step, blocks and flags, the shipped configs."""

import importlib.util
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml
from parts import CHECKS, OF_CONFIG, SCHEMAS, load, load_config, read_sheet
from pydantic import TypeAdapter
from snakemake.utils import validate

from atlasmap import config as package
from atlasmap.errors import AtlasmapError
from atlasmap.settings import NUMERICS, Config, DataConfig, ScviSettings

FLAGS = load("common/flags.smk")
ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "config").glob("*.yaml")) + sorted((ROOT / "tests/parity").glob("*.yaml"))


def make_schemas():
    spec = importlib.util.spec_from_file_location("make", ROOT / "workflow/schemas/make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_schemas_are_in_step_with_the_settings():
    made = make_schemas()
    for name, cls in made.SCHEMAS.items():
        assert (ROOT / "workflow/schemas" / name).read_text() == made.text(cls), "run make schemas"


def test_the_readme_describes_every_key():
    made = make_schemas()
    assert made.README.read_text(encoding="utf-8") == made.readme(), "run make schemas"


def blocks(schema):
    yield schema
    for block in schema.get("properties", {}).values():
        if "properties" in block:
            yield from blocks(block)


def test_schemas_are_closed_and_described():
    for cls in make_schemas().SCHEMAS.values():
        schema = yaml.safe_load(make_schemas().text(cls))
        for block in blocks(schema):
            assert block["additionalProperties"] is False
            for key, value in block["properties"].items():
                assert value.get("description"), key


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_and_their_sheets_are_valid(path):
    given = yaml.safe_load(path.read_text())
    config = load_config(given)
    jsonschema.validate(given, yaml.safe_load(make_schemas().text(Config)))
    taken = bool(config.reference.bundle or config.reference.scvi_tools)
    assert read_sheet(ROOT / config.datasets, trained=taken)


def test_an_atlas_file_for_each_promised_config():
    names = {path.stem for path in SHIPPED}
    assert {"config", "cell_lines", "simulated", "lung_atlas", "hlca"} <= names


def test_lung_atlas_has_the_tutorials_settings():
    config = load_config(yaml.safe_load((ROOT / "config/lung_atlas.yaml").read_text()))
    scvi, scanvi = config.scvi, config.scanvi
    assert (scvi.n_layers, scvi.n_latent, scvi.gene_likelihood) == (2, 30, "nb")
    assert (scvi.use_batch_norm, scvi.use_layer_norm) == ("both", "none")
    assert (scvi.dropout_rate, scvi.encode_covariates) == (0.1, False)
    assert (scvi.train.max_epochs, scanvi.train.max_epochs) == (300, 100)
    assert scanvi.train.check_val_every_n_epoch == 1
    assert (config.data.n_top_genes, config.counts) == (2000, "corrected_float")


def test_defaults_are_the_arches_setting():
    scvi = ScviSettings()
    assert (scvi.use_layer_norm, scvi.use_batch_norm, scvi.encode_covariates) == (
        "both",
        "none",
        True,
    )
    assert (scvi.n_layers, scvi.dropout_rate, scvi.train.adam_eps) == (2, 0.2, 0.01)


def test_a_partial_block_keeps_the_other_defaults():
    config = load_config({"atlas": "a", "datasets": "d", "scanvi": {"train": {"batch_size": 64}}})
    assert config.scanvi.train.adam_eps == 0.01 and config.scanvi.train.batch_size == 64


def test_final_has_sensible_defaults():
    base = {"atlas": "a", "datasets": "d"}
    final = CHECKS.final_of(
        load_config(base | {"strategies": ["joint", "per_batch"], "seeds": [4, 2]})
    )
    assert (final.variant, final.strategy, final.seed) == ("fixed", "joint", 4)
    assert (
        CHECKS.final_of(load_config(base | {"variants": ["prefix", "linear"]})).variant == "prefix"
    )


def test_a_variants_block_lies_over_scanvi():
    given = {
        "scanvi": {"classification_ratio": 10.0, "train": {"max_epochs": 7}},
        "scanvi_linear": {"train": {"batch_size": 64}},
    }
    for variant_block in (CHECKS.variant_block, package.variant_block):
        assert variant_block(given, "fixed") == given["scanvi"]
        assert variant_block(given, "linear") == {
            "classification_ratio": 10.0, "train": {"max_epochs": 7, "batch_size": 64}
        }  # fmt: skip
    assert package.merged({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


def test_a_flag_survives_a_shell():
    block = {"x": 'it\'s "quoted"', "n": None, "t": {"k": 1}}
    (word,) = shlex.split(FLAGS.as_flag("scvi", block))
    name, text = word.split("=", 1)
    assert name == "--scvi" and json.loads(text) == block


@pytest.mark.parametrize(
    "url, name",
    [
        ("https://figshare.com/ndownloader/files/23939711", "a.h5ad"),
        ("https://zenodo.org/records/1/files/x.h5ad?download=1", "a.h5ad"),
        ("https://x.org/v1.2/filtered_feature_bc_matrix.h5", "a.h5"),
        ("builtin:pbmc68k", "a.h5ad"),
    ],
)
def test_what_is_fetched_has_an_ending_that_is_read(url, name):
    assert CHECKS.fetched_as(SimpleNamespace(id="a", path=url)) == name


def written_bundle(folder, **about):
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize(
    ("about", "given", "mend"),
    [
        ({"kind": "totalvi", "classifier": {}}, {}, "modality: citeseq"),
        ({"kind": "scanvi", "variant": "fixed"}, {"modality": "citeseq"}, "modality: rna"),
        ({"kind": "totalvi"}, {"modality": "citeseq"}, "labels: none"),
        ({"kind": "totalvi", "classifier": {"n": 1}}, {"modality": "citeseq", "labels": "none"},
         "leave out labels: none"),
    ],
)  # fmt: skip
def test_a_bundle_of_another_kind_is_refused(about, given, mend, tmp_path):
    folder = written_bundle(tmp_path / "b", **about)
    given = {"atlas": "a", "datasets": "s.tsv", "reference": {"bundle": str(folder)}} | given
    with pytest.raises(AtlasmapError, match="CONFIG_REFERENCE") as error:
        CHECKS.variants_with(load_config(given), given, folder)
    assert mend in error.value.mend


def test_a_totalvi_bundle_is_taken(tmp_path):
    folder = written_bundle(tmp_path / "b", kind="totalvi", classifier={"n_steps": 1})
    given = {"atlas": "a", "datasets": "s.tsv", "reference": {"bundle": str(folder)}}
    given |= {"modality": "citeseq"}
    assert CHECKS.variants_with(load_config(given), given, folder) == ["prefix", "fixed", "linear"]


@pytest.mark.parametrize(
    "given",
    [{"modality": "citeseq", "scvi": {}}, {"modality": "citeseq", "variants": ["fixed"]},
     {"totalvi": {}}, {"totalvi_surgery": {}},
     {"modality": "citeseq", "final": {"variant": "fixed"}}],
)  # fmt: skip
def test_blocks_of_the_other_modality_are_refused(given):
    with pytest.raises(AtlasmapError, match="CONFIG_MODALITY"):
        load_config({"atlas": "a", "datasets": "s.tsv"} | given)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"variants": ["linear"]}, "CONFIG_REFERENCE"),
        ({"labels": "none"}, "CONFIG_REFERENCE"),
        ({"scvi": {"n_latent": 7}}, "CONFIG_REFERENCE"),
        ({"reference": {"bundle": "no"}}, "BUNDLE_MISSING"),
        ({"reference": {"bundle": "a", "scvi_tools": "b"}}, "CONFIG_REFERENCE"),
        ({"reference": {"scvi_tools": "b"}}, "CONFIG_REFERENCE"),
        (
            {"reference": {"scvi_tools": "http://x/model.pt"}, "variants": ["fixed"]},
            "CONFIG_REFERENCE",
        ),
    ],
)
def test_a_trained_reference_that_the_config_does_not_fit(tmp_path, change, code):
    folder = written_bundle(tmp_path / "b", kind="scanvi", variant="fixed")
    given = {"atlas": "a", "datasets": "d", "reference": {"bundle": str(folder)}}
    config = load_config(given)
    assert CHECKS.variants_with(config, given, folder) == ["fixed"]
    with pytest.raises(AtlasmapError) as error:
        config = load_config(given | change)
        CHECKS.variants_with(config, given | change, Path(config.reference.bundle))
    assert error.value.code == code and error.value.mend


@pytest.mark.parametrize(
    ("asked", "batches", "cells", "expected"),
    [(None, 3, 500, 3), (None, 9, 500, 4), (None, 9, 20_000, 2), (6, 9, 20_000, 6), (6, 2, 50, 2),
     (None, 1, 500, 3), (9, 1, 500, 3)],
)  # fmt: skip
def test_how_often_a_reference_is_trained_to_hold_batches_out(asked, batches, cells, expected):
    assert package.n_folds(asked, batches, cells) == expected
    folds = SimpleNamespace(calibration=SimpleNamespace(folds=asked))
    assert load("common/trust.smk", CONFIG=folds, CITESEQ=False).n_folds(batches, cells) == expected


def test_depths_that_trust_is_learned_for_are_the_references_alone():
    def levels(depth, **queries):
        return package.depth_levels(
            {"reference": {"counts": {"median_depth": depth}}, "queries": queries}
        )

    assert levels(500.0) == levels(700.0) == [512, 256, 128, 64]  # 724: half-way, in octaves
    assert levels(730.0, q={"counts": {"median_depth": 9.0}}) == [1024, 512, 256, 128]
    assert levels(40.0) == [32, 16] and levels(3.0) == [4]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"scvi": {"max_epochs": 3}}, "scvi.train.max_epochs"),
        ({"max_epochs": 3}, "scvi.train.max_epochs"),
        ({"scvi": {"train": {"max_epoch": 3}}}, "scvi.train.max_epochs"),
        ({"n_top_genes": 4}, "data.n_top_genes"),
        ({"datset": "x"}, "datasets"),
        ({"scanvi": {"n_latent": 4}}, "scvi.n_latent"),
        ({"calibration": {"fold": 3}}, "calibration.folds"),
    ],
)
def test_the_key_that_was_meant_is_found_at_any_depth(given, meant):
    with pytest.raises(AtlasmapError, match="CONFIG_INVALID") as error:
        load_config({"atlas": "a", "datasets": "d"} | given)
    assert f"did you mean {meant}?" in error.value.found


def test_a_key_like_no_other_lists_those_there_are():
    with pytest.raises(AtlasmapError) as error:
        load_config({"atlas": "a", "datasets": "d", "scvi": {"zzzz": 1}})
    assert "did you mean" not in error.value.found and "n_latent" in error.value.found


def test_the_schema_has_the_defaults_of_the_settings():
    """What Snakemake fills in is what the package would."""
    filled = {"atlas": "a", "datasets": "d"}
    validate(filled, str(SCHEMAS / "config.schema.yaml"))
    whole = json.loads(TypeAdapter(Config).dump_json(Config(atlas="a", datasets="d")))
    assert filled == whole


def test_a_number_without_a_dot_is_a_number():
    """PyYAML takes 1e-3 for a text."""
    given = {"atlas": "1e5", "datasets": "d", "scvi": {"train": {"learning_rate": "1e-3"}}}
    config = load_config(given)
    assert config.scvi.train.learning_rate == 1e-3 and config.atlas == "1e5"
    assert given["scvi"]["train"]["learning_rate"] == "1e-3"  # as the user wrote it
    nested = {"mapping": {"batches_per_job": "10"}, "seeds": ["3"]}  # of snakemake --config
    nested |= {"surgery": {"early_stopping": "True"}, "data": {"memory_gb": ".5"}}
    config = load_config(given | nested)
    assert config.mapping.batches_per_job == 10 and config.seeds == [3]
    assert config.surgery.early_stopping is True and config.data.memory_gb == 0.5
    with pytest.raises(AtlasmapError, match="n_latent is '1e-x'"):
        load_config(given | {"scvi": {"n_latent": "1e-x"}})


def test_numbers_that_rerun_stages_are_those_that_bundles_record():
    assert {name: FLAGS.NUMERICS[name] for name in NUMERICS} == NUMERICS


def test_keys_that_jobs_reading_data_depend_on_are_those_of_its_settings():
    assert {*FLAGS.OF_DATA, "data"} == set(DataConfig.__dataclass_fields__)
    assert set(OF_CONFIG["properties"]) == set(Config.__dataclass_fields__)
