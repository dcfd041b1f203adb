"""Forecasts: what they depend on, how they are corrected, what jobs are told to ask for."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from small import CPU

from atlasmap.forecast import cost as forecast
from atlasmap.forecast import speed_probe as probe
from atlasmap.forecast.cost import Forecast, corrected, corrections, resources
from atlasmap.forecast.speed_probe import Sizes, Speeds
from atlasmap.settings import CalibrationSettings, Config, MappingSettings, ReferenceSettings

SIZES = Sizes(4000, 1500, 0.17, 6, 12, [800, 700, 50])
SPEEDS = Speeds(scvi=1e-5, scanvi=3e-5, surgery=5e-6, start=2.0, mb=600.0)
CONFIG = Config(atlas="a", datasets="s.tsv")


def rows(sizes: Sizes = SIZES, config: Config = CONFIG, given: dict | None = None, speeds=SPEEDS):
    return {row.rule: row for row in forecast.forecast(sizes, config, given or {}, speeds)}


def test_training_is_epochs_times_cells_times_speed():
    slower = replace(SPEEDS, scvi=2e-5, scanvi=6e-5, surgery=1e-5)
    extra = {r: rows(speeds=slower)[r].seconds - rows()[r].seconds for r in rows()}
    assert extra["train_scvi"] == pytest.approx(400 * 4000 * 1e-5)
    assert extra["train_scanvi"] == pytest.approx(100 * 4000 * 3e-5)
    assert extra["map_joint"] == pytest.approx(100 * 1550 * 5e-6)
    assert extra["map_per_batch"] == pytest.approx(100 * 800 * 5e-6)
    assert rows()["train_scvi"].seconds == pytest.approx(2 + 400 * 4000 * 1e-5)


def test_numbers_of_jobs():
    found = {rule: row.jobs for rule, row in rows().items()}
    assert found == {
        "train_scvi": 1, "train_scanvi": 3, "map_per_batch": 9, "map_joint": 3,
        "train_held_out": 4,
    }  # fmt: skip
    twice = replace(CONFIG, calibration=CalibrationSettings(folds=2))
    assert rows(config=twice)["train_held_out"].jobs == 2
    none = replace(CONFIG, calibration=CalibrationSettings("none"))
    assert "train_held_out" not in rows(config=none)
    taken = replace(CONFIG, reference=ReferenceSettings(bundle="b"))
    assert set(rows(config=taken)) == {"map_per_batch", "map_joint"}
    packed = replace(CONFIG, mapping=MappingSettings(2), seeds=[0, 1], variants=["fixed"])
    assert rows(config=packed)["map_per_batch"].jobs == 2 * 2
    alone = rows(replace(SIZES, queries=[]))
    assert not {"map_per_batch", "map_joint"} & set(alone)
    assert "train_scanvi" not in rows(replace(SIZES, n_labels=0))


@pytest.mark.parametrize(("n", "kept", "asked"), [(4000, 3000, 1000), (400_000, 200_000, 10_000)])
def test_a_fold_trains_all_models_and_maps_onto_those_with_labels(n, kept, asked):
    sizes, alone = replace(SIZES, n_reference=n), replace(CONFIG, variants=["fixed"])
    config = replace(
        alone, scvi=replace(CONFIG.scvi, train=replace(CONFIG.scvi.train, max_epochs=7))
    )
    mapped = 100 * 4 * asked * SPEEDS.surgery  # four library sizes of the held-out cells
    scanvi, scvi = 100 * kept * SPEEDS.scanvi, 7 * kept * SPEEDS.scvi
    found = rows(sizes, config)["train_held_out"].seconds - SPEEDS.start
    assert found == pytest.approx(scvi + scanvi + mapped)
    three = rows(sizes, replace(config, variants=["fixed", "prefix", "linear"]))["train_held_out"]
    assert three.seconds - SPEEDS.start == pytest.approx(scvi + 3 * (scanvi + mapped))


def test_citeseq_trains_totalvi_alone():
    config = Config(atlas="a", datasets="s.tsv", modality="citeseq")
    found = rows(replace(SIZES, n_proteins=20), config)
    assert {rule: row.jobs for rule, row in found.items() if "train" in rule or "map" in rule} == {
        "train_totalvi": 1, "train_held_out": 4,
        "map_per_batch": 3, "map_joint": 1,
    }  # fmt: skip
    slower = rows(replace(SIZES, n_proteins=20), config, speeds=replace(SPEEDS, scvi=2e-5))
    more = slower["train_totalvi"].seconds - found["train_totalvi"].seconds
    assert more == pytest.approx(400 * 4000 * 1e-5)
    more = slower["denoise_reference"].seconds - found["denoise_reference"].seconds
    assert more == pytest.approx(forecast.DECODING * 25 * 4000 * 1e-5)
    layers = found["denoise_reference"].mem_mb - found["train_totalvi"].mem_mb
    assert layers == pytest.approx(4 * 4000 * 1500 * 4 / 1e6)  # float32, cells × genes


def test_citeseq_is_probed(monkeypatch):
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.2)
    sizes, config = Sizes(60, 50, 0.3, 2, 3, [40], 12), Config(atlas="a", datasets="s.tsv")
    speeds = probe.probe(sizes, config, CPU)
    assert speeds.scvi > 0 and speeds.surgery > 0 and speeds.scanvi == 0


def test_the_longest_variant_counts():
    given = {
        "scanvi": {"train": {"max_epochs": 10}},
        "scanvi_linear": {"train": {"max_epochs": 70}},
    }
    seventy = rows(given=given)["train_scanvi"].seconds
    assert rows()["train_scanvi"].seconds - seventy == pytest.approx(30 * 4000 * 3e-5)


def test_memory_grows_with_the_data():
    large = rows(replace(SIZES, n_reference=10**6))
    assert large["train_scvi"].mem_mb > 10_000 > 1000 > rows()["train_scvi"].mem_mb
    assert large["train_scvi"].gpu_mb > 5000


def test_the_probe_times_the_models_themselves(monkeypatch):
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.2)
    speeds = probe.probe(replace(SIZES, n_reference=300, n_genes=200), CONFIG, CPU)
    assert min(speeds.scvi, speeds.scanvi, speeds.surgery, speeds.start, speeds.mb) > 0
    unlabelled = replace(SIZES, n_reference=300, n_genes=200, n_labels=0, queries=[])
    speeds = probe.probe(unlabelled, CONFIG, CPU)
    assert speeds.scanvi == speeds.surgery == 0 < speeds.scvi


def finished(folder: Path, raw: list[Forecast], took: dict[str, tuple[float, float]]) -> None:
    """An atlas that was forecast and run."""
    (folder / "logs/seed0").mkdir(parents=True)
    said = forecast.as_json(raw, {}, SPEEDS, CPU)
    (folder / "forecast.json").write_text(json.dumps(said))
    os.utime(folder / "forecast.json", (1, 1))
    for name, (seconds, rss) in took.items():
        (folder / "logs" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "logs" / name).write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t{rss}\n")


def test_earlier_runs_correct_it(tmp_path):
    raw = list(rows().values())
    once = {row.rule: row for row in raw}
    took = {
        "seed0/train_scvi.tsv": (2 * once["train_scvi"].seconds, 3 * once["train_scvi"].mem_mb),
        "seed0/map_per_batch_fixed/b.tsv": (0.5 * once["map_per_batch"].seconds, 10.0),
        "seed0/map_per_batch_linear/+01.tsv": (0.5 * once["map_per_batch"].seconds, 10.0),
        "plot_figures.tsv": (1, 1),
    }
    finished(tmp_path / "a", raw, took)
    again = {row.rule: row for row in corrected(raw, corrections(tmp_path))}
    assert again["train_scvi"].seconds == pytest.approx(2 * once["train_scvi"].seconds)
    assert again["train_scvi"].mem_mb == pytest.approx(3 * once["train_scvi"].mem_mb)
    assert again["map_per_batch"].seconds == pytest.approx(0.5 * once["map_per_batch"].seconds)
    assert again["map_per_batch"].mem_mb == pytest.approx(0.5 * once["map_per_batch"].mem_mb)
    assert again["map_joint"] == once["map_joint"]


def test_a_forecast_anew_keeps_what_was_learnt_and_forgets_what_does_not_count(tmp_path):
    raw = list(rows().values())
    twice = 2 * rows()["train_scvi"].seconds
    logs = tmp_path / "a/logs/seed0"
    finished(tmp_path / "a", raw, {"seed0/train_scvi.tsv": (twice, 100)})
    known = corrections(tmp_path)
    assert known["train_scvi"][0] == pytest.approx(2)
    # other settings, no run since: the old log says nothing of the new forecast
    longer = list(rows(replace(SIZES, n_reference=40_000)).values())
    said = forecast.as_json(longer, known, SPEEDS, CPU)
    (tmp_path / "a/forecast.json").write_text(json.dumps(said))
    assert corrections(tmp_path) == known
    for text in ("scVI: taken up at epoch 3", "query1: mapped already"):
        finished(tmp_path / text[:4], raw, {"seed0/train_scvi.tsv": (0.01, 100)})
        (tmp_path / text[:4] / "logs/seed0/train_scvi.log").write_text(text)
    assert corrections(tmp_path) == known
    (logs / "train_scvi.tsv").write_text("s\th:m:s\tmax_rss\n5\t0:00:05\tNA\n")
    (logs / "fit_umap_x.tsv").write_text("")
    os.utime(tmp_path / "a/forecast.json", (1, 1))
    assert corrections(tmp_path)["train_scvi"][1] == 1


def test_a_forecast_is_compared_with_what_jobs_took(tmp_path):
    raw = list(rows().values())
    seconds = rows()["map_per_batch"].seconds
    logs = {f"seed0/map_per_batch_fixed/{k}.tsv": (k * seconds, 100 * k) for k in (1, 3)}
    finished(tmp_path / "a", raw, logs)
    table = forecast.compared(tmp_path / "a")
    assert list(table.index) == ["map_per_batch"]
    assert table.loc["map_per_batch", "time"] == pytest.approx(0.5)
    assert table.loc["map_per_batch", "took_mb"] == 300


def test_nothing_to_correct_with(tmp_path):
    assert corrections(tmp_path) == {}


def test_jobs_ask_for_more_than_the_forecast():
    asked = resources(list(rows().values()))
    for rule, row in rows().items():
        assert asked[rule]["mem_mb"] > 1.2 * row.mem_mb
        assert asked[rule]["runtime"] * 60 > 2 * row.seconds
        assert all(isinstance(value, int) for value in asked[rule].values())


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("results/a/logs/seed0/train_scvi.tsv", "train_scvi"),
        ("results/a/logs/seed3/train_scanvi_linear.tsv", "train_scanvi"),
        ("results/a/logs/seed0/map_per_batch_fixed/b.tsv", "map_per_batch"),
        ("results/a/logs/seed0/map_batch_fixed/b.tsv", None),
        ("results/a/logs/prepare_query/b.tsv", None),
        ("results/a/logs/publish/labels.csv.tsv", None),
    ],
)
def test_benchmark_files_belong_to_rules(path, rule):
    assert forecast.rule_of(Path(path)) == rule
