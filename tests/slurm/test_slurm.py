"""`snakemake --profile slurm` on a real Slurm: the straight path, and all that goes wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import anndata
import pytest
import yaml
from conftest import BIN, CONFIG, ROOT, SCVI, Folder, new_folder, slurm, slurmctld, wait_for

TARGET = SCVI + "settings.json"


def training(folder: Folder, *args: str) -> subprocess.Popen:
    """A run whose scVI is being trained."""
    run = folder.start(TARGET, *args)
    wait_for(folder.training, 120, "training")
    return run


def finished(folder: Folder, expected: dict[str, str], *, attempts: int) -> None:
    """The bundle of an undisturbed run, nothing half-written, so many Slurm jobs."""
    assert folder.hashes(SCVI) == expected
    assert folder.half_written() == []
    assert len(folder.submitted()) == attempts
    assert not list(folder.path.glob("results/tiny/logs/**/*.failure.json"))


def test_straight_path(cluster, tmp_path):
    """From raw counts to named cells, with the preflight before; the same bits without Slurm."""
    folder, top = new_folder(tmp_path / "slurm"), "results/tiny/"
    targets = [top + name for name in ("atlas.h5ad", "labels.csv", "benchmark/classification.csv")]
    said = folder.run(*targets)
    assert "ok    Slurm" in said and "ok    limits" in said
    assert folder.half_written() == []
    gpu_jobs = [j for j in folder.submitted() if "gres/gpu" in slurm("scontrol", "show", "job", j)]
    assert len(gpu_jobs) == 2 + 2 * 2  # scVI, scANVI, and of each a surgery for each query batch
    local = new_folder(tmp_path / "local")
    local.locally(*targets)
    assert folder.hashes() == local.hashes()
    assert "Nothing to be done" in folder.run(*targets)


def test_bad_input_is_not_tried_again_and_nothing_trains(cluster, tmp_path):
    folder = new_folder(tmp_path / "work")
    adata = anndata.read_h5ad(folder.path / "atlas.h5ad")
    query = (adata.obs["batch"] == "query1").to_numpy()
    adata.X[query] = adata.X[query] * 0.37
    adata.write_h5ad(folder.path / "atlas.h5ad")
    folder.run("check", ok=False)
    logs = folder.path / "results/tiny/logs"
    record = json.loads((logs / "prepare_query/query1.failure.json").read_text())
    assert record["kind"] == "bad_input" and record["code"] == "COUNTS_NOT_INTEGER"
    assert "not tried again" in (logs / "prepare_query/query1.log").read_text()
    assert "train_scvi" not in folder.output
    why = folder.why("prepare_query")
    assert "COUNTS_NOT_INTEGER" in why and "By hand: atlasmap prepare-query" in why
    # mended, the same command goes on
    new_folder(folder.path)
    folder.run("check")
    assert not list(logs.rglob("*.failure.json"))


def test_a_gpu_that_torch_cannot_use_fails_by_name_at_once(work):
    folder, _ = work
    folder.run("--config", "device=auto", "--retries", "0", TARGET, ok=False)
    record = json.loads(folder.log("train_scvi.failure").with_suffix(".json").read_text())
    assert (record["kind"], record["code"]) == ("missing_gpu", "GPU_UNUSABLE")
    assert "scVI: epoch" not in folder.log("train_scvi").read_text()


def test_killed_by_the_machine(work):
    """SIGKILL: the job can say nothing; its last checkpoint is taken up."""
    folder, expected = work
    run = training(folder)
    time.sleep(5)
    [pid] = folder.processes("atlasmap --log")[-1:]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(folder.submitted()) == 2, 120, "the second attempt")
    assert run.wait(timeout=300) == 0, folder.output[-3000:]
    assert "taken up at epoch" in folder.log("train_scvi").read_text()
    finished(folder, expected, attempts=2)


def test_scancel(work):
    folder, expected = work
    run = training(folder)
    slurm("scancel", folder.submitted()[0])
    assert run.wait(timeout=300) == 0, folder.output[-3000:]
    text = folder.logs("train_scvi")
    assert "SIGTERM came" in text and "taken up at epoch" in text
    finished(folder, expected, attempts=2)


def test_walltime(work):
    """A job of one minute that needs more says so early, leaves in time, and is taken up."""
    folder, _ = work
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    config["scvi"]["train"]["max_epochs"] = 12_000
    (folder.path / "config.yaml").write_text(yaml.safe_dump(config))
    undisturbed = Folder(folder.path.with_name("undisturbed"))
    shutil.copytree(folder.path, undisturbed.path)
    run = folder.start(TARGET, "--set-resources", "train_scvi:runtime=1", "--retries", "9")
    assert run.wait(timeout=900) == 0, folder.output[-3000:]
    text = folder.logs("train_scvi")
    assert "will leave a checkpoint" in text and "walltime is nearly over" in text
    assert len(folder.submitted()) > 1 and folder.half_written() == []
    for job in folder.submitted():
        assert "TIMEOUT" not in slurm("scontrol", "show", "job", job)
    undisturbed.run(TARGET)
    assert len(undisturbed.submitted()) == 1 and folder.hashes(SCVI) == undisturbed.hashes(SCVI)


def test_out_of_memory_grows_and_why_knows_it(work):
    folder, expected = work
    small = ("--set-resources", "train_scvi:mem_mb=430*attempt*attempt")
    folder.run(TARGET, *small, "--retries", "0", ok=False)
    why = folder.why("train_scvi")
    assert "host_memory" in why and "more memory than it asked for" in why
    assert "mem_mb" in why and "ReqMem" in why
    folder.run(TARGET, *small, "--retries", "3")
    finished(folder, expected, attempts=3)


def test_preempted(work, tmp_path):
    """Slurm takes the node for a better job and puts ours back into the queue; it is taken up."""
    folder, expected = work
    partitions = tmp_path / "partitions.yaml"
    partitions.write_text(yaml.safe_dump({"partitions": {"low": {"max_gpu": 1}}}))
    run = training(folder, "--slurm-partition-config", str(partitions))
    time.sleep(5)
    slurm("sbatch", "-p", "high", "--exclusive", "--time=1", "-o", "/dev/null", "--wrap", "sleep 8")
    job = folder.submitted()[0]
    wait_for(lambda: "Restarts=1" in slurm("scontrol", "show", "job", job), 120, "the requeue")
    wait_for(lambda: folder.training("taken up at epoch"), 200, "the second start")
    [first] = folder.log("train_scvi").parent.glob("train_scvi.attempt1.log")
    assert "SIGTERM came" in first.read_text()
    assert run.wait(timeout=400) == 0, folder.output[-3000:]
    assert "taken up at epoch" in folder.log("train_scvi").read_text()
    finished(folder, expected, attempts=1)


def test_slurmctld_restarted_in_mid_run(work):
    folder, expected = work
    run = training(folder)
    slurmctld()
    assert run.wait(timeout=300) == 0, folder.output[-3000:]
    finished(folder, expected, attempts=1)


@pytest.mark.skipif(shutil.which("chattr") is None, reason="no chattr to make a folder read-only")
def test_results_read_only(work):
    folder, expected = work
    (folder.path / "results/tiny/seed0/reference").mkdir(parents=True)
    subprocess.run(["chattr", "+i", folder.path / "results/tiny/seed0/reference"], check=True)
    try:
        folder.run(TARGET, ok=False)
        said = folder.output + folder.why()
    finally:
        subprocess.run(["chattr", "-i", folder.path / "results/tiny/seed0/reference"], check=True)
    assert re.search("not permitted|read-only|denied", said, re.IGNORECASE)
    assert folder.hashes(SCVI) == {}
    folder.run(TARGET)
    assert folder.hashes(SCVI) == expected and folder.half_written() == []


def test_snakemake_itself_killed_and_started_again(work):
    folder, expected = work
    run = training(folder)
    run.send_signal(signal.SIGKILL)
    run.wait()
    for job in folder.submitted():  # nobody looks after them any more
        slurm("scancel", job)
    wait_for(lambda: not slurm("squeue", "-h"), 60, "the queue to be empty")
    folder.run("--unlock")
    folder.run(TARGET)
    assert "taken up at epoch" in folder.log("train_scvi").read_text()
    assert folder.hashes(SCVI) == expected and folder.half_written() == []


def test_interrupted_by_the_user(work):
    """Ctrl-C cancels the jobs; the next run goes on where they were."""
    folder, expected = work
    run = training(folder)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=120) != 0
    wait_for(lambda: not slurm("squeue", "-h"), 60, "the jobs to be cancelled")
    folder.run(TARGET)
    assert "taken up at epoch" in folder.log("train_scvi").read_text()
    assert folder.hashes(SCVI) == expected and folder.half_written() == []


def test_one_bad_batch_of_a_packed_job(cluster, tmp_path):
    """The others are mapped, kept, and not mapped again."""
    folder = new_folder(tmp_path / "work", mapping={"batches_per_job": 10})
    mapped = "results/tiny/seed0/mapping/fixed/per_batch"
    queries = [f"results/tiny/data/queries/query{k}.h5ad" for k in range(2)]
    folder.run("results/tiny/seed0/reference/scanvi_fixed/settings.json", *queries)
    query = folder.path / queries[0]
    good = query.read_bytes()
    adata = anndata.read_h5ad(query)
    adata.obs["batch"] = "batch0"
    adata.write_h5ad(query)
    [marker] = re.findall(r"\S+/\.mapped/\S+?\.json", folder.run("-n", "--quiet", "progress"))[:1]
    folder.run(marker, ok=False)
    assert not (folder.path / marker).exists()
    assert (folder.path / mapped / "query1/latent.h5ad").exists()
    log = folder.log("map_per_batch_fixed/+")
    assert "BATCHES_FAILED" in log.read_text() and "not tried again" in log.read_text()
    query.write_bytes(good)
    folder.run(marker)
    assert "query1: mapped already" in log.read_text()
    assert {d.name for d in (folder.path / mapped).iterdir()} >= {"query0", "query1"}


def test_doctor_finds_what_is_wrong(cluster, tmp_path):
    folder = new_folder(tmp_path / "work")
    partitions = tmp_path / "partitions.yaml"
    partitions.write_text(yaml.safe_dump({"partitions": {"cpu": {}, "gpgpu": {"max_gpu": 1}}}))
    said = folder.run("--slurm-partition-config", str(partitions), ok=False)
    assert "error partitions    gpgpu: not there or not up" in said
    assert re.search("error limits +train_scvi asks for .* 1 GPUs; cpu allows 0 GPUs", said)
    assert folder.submitted() == []
    said = folder.atlasmap("doctor", "--write_partitions", "--partitions", str(partitions))
    assert set(yaml.safe_load(partitions.read_text())["partitions"]) >= {"cpu", "gpu"}
    assert "error" not in said
    said = folder.atlasmap("doctor", "--job", "--partitions", str(partitions))
    assert "in a job:" in said and "error GPU" in said and "CUDA_VISIBLE_DEVICES: 0" in said


def test_the_default_config(cluster, tmp_path):
    """What the README says, from the repository's root."""
    folder = Folder(tmp_path)
    command = [str(BIN / "snakemake"), "--profile", "slurm", "--config", "device=any",
               "--directory", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=folder.env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "Predicted labels against known ones" in done.stdout
    assert (tmp_path / "results/pbmc68k/labels.csv").exists()


def test_config_is_what_it_should_be():
    """The tests above run what users run: the profile is theirs, with the waits shortened."""
    profile = yaml.safe_load(Path(ROOT / "slurm/config.yaml").read_text())
    assert profile["executor"] == "slurm" and profile["slurm-status-command"] == "squeue"
    assert profile["retries"] == 2 and "config" not in profile and CONFIG["device"] == "any"
