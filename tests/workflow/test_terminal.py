"""What is seen of a run as the docs give it: a line for each job, and an error once."""

import re

from tiny import CONFIG, new_folder, snakemake

QUIET = ("--quiet", "rules", "host")
JOB = re.compile(r"\d\d:\d\d:\d\d +(\d+) of (\d+)  (\w+)")


def test_a_run_is_a_line_for_each_job(finished):
    text = (finished / "output.txt").read_text()
    ended = [JOB.match(line) for line in text.splitlines() if JOB.match(line)]
    numbers = [int(line[1]) for line in ended]
    assert numbers == list(range(1, int(ended[-1][2]) + 1))
    assert {"train_scvi", "map_joint", "write_report"} <= {line[3] for line in ended}
    assert "train_scanvi seed=0 variant=linear" in text and "prepare_query batch=Zoë/1 a" in text
    foreign = [
        line for line in text.splitlines() if re.match("Select|Execute|Finished|Using", line)
    ]
    assert foreign == []
    rest = text.split("Job stats:")[1].split("\n\n", 1)[1]  # its table of jobs left out
    assert [line for line in rest.splitlines() if line.strip() and not JOB.match(line)][2:] == []


def test_a_failed_job_is_said_once_where_it_fails_and_explained_once_at_the_end(tmp_path):
    train = {"max_epochs": 30, "learning_rate": 10.0}
    calibration = {"scheme": "none"}
    changed = {"scvi": CONFIG["scvi"] | {"train": train}, "calibration": calibration}
    folder = new_folder(tmp_path, CONFIG | changed)
    text = snakemake(folder, *QUIET, ok=False)
    [failed] = re.findall(r"^\S+  failed  (.*)$", text, re.MULTILINE)
    assert failed == "train_scvi seed=0  log: results/tiny/logs/seed0/train_scvi.log"
    assert text.count("TRAINING_NAN") == 1 and text.count("By hand:") == 1
    assert "CalledProcessError" not in text and "Traceback" not in text
    [log] = (folder / ".snakemake/log").glob("*.log")
    assert "CalledProcessError" in log.read_text()


def test_a_wrong_key_is_said_once(tmp_path):
    folder = new_folder(tmp_path, CONFIG | {"varients": ["fixed"]})
    text = snakemake(folder, *QUIET, ok=False)
    assert text.startswith("error: CONFIG_INVALID") and text.count("varients") == 1
    assert len(text.strip().splitlines()) == 4


def test_errors_of_snakemakes_own_are_shown(tmp_path):
    folder = new_folder(tmp_path)
    text = snakemake(folder, *QUIET, "--", "results/tiny/nothing.csv", ok=False)
    assert "MissingRuleException" in text and "nothing.csv" in text
