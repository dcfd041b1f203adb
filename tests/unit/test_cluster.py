"""Doctor and why, on what Slurm's commands are known to say; job times; resources refused."""

import fcntl
import os
import re
import time
from pathlib import Path

import pytest

from atlasmap.errors import AtlasmapError
from atlasmap.jobs import doctor, slurm, why
from atlasmap.jobs.doctor import Need, Partition
from atlasmap.jobs.failures import failure_of, failure_path, write_failure
from atlasmap.jobs.partitions import Limits, minutes_of
from atlasmap.training.stopping import Stopped

PARTITIONS = (
    "PartitionName=cpu AllowGroups=ALL Default=YES MaxTime=1-12:00:00 State=UP TotalNodes=1\n"
    "PartitionName=gpu AllowGroups=ALL Default=NO MaxTime=04:30:00 State=UP TotalNodes=2\n"
    "PartitionName=old AllowGroups=ALL Default=NO MaxTime=UNLIMITED State=DOWN TotalNodes=2\n"
)
NODES = "cpu|16000|(null)\ngpu|64000+|gpu:a100:4(S:0-1)\ngpu|32000|gpu:2\nold|1000|(null)\n"
JOB = (
    "JobId=7 JobName=x UserId=root(0) JobState=OUT_OF_MEMORY Reason=OutOfMemory ExitCode=0:125 "
    "StartTime=2026-11-20T10:00:00 EndTime=2026-11-20T11:00:00 Comment=rule a wildcards: b=1 "
    "NodeList=g1"
)
ACCOUNTED = (
    "7|OUT_OF_MEMORY|0:125||2000M|00:01:02|00:10:00|g1\n"
    "7.batch|FAILED|0:9|1900.5M||00:01:02||g1\n7.0|CANCELLED|0:9|120M||00:01:02||g1\n"
)


@pytest.fixture
def answers(monkeypatch):
    """What Slurm's commands answer, by the first word of the answer asked for."""
    known = {
        "sinfo": NODES, "show partition": PARTITIONS, "show job": JOB, "sacct": ACCOUNTED,
        "show config": "AccountingStorageType = accounting_storage/slurmdbd\nMinJobAge = 300 sec\n",
        "sbatch": "slurm-wlm 22.05.8\n",
    }  # fmt: skip

    def ask(*command):
        text = " ".join(command)
        return next((said for key, said in known.items() if key in text), None)

    monkeypatch.setattr(slurm, "ask", ask)
    monkeypatch.setattr(doctor, "ask", ask)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    return known


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("1-12:00:00", 2160), ("04:30:00", 270), ("30:00", 30), ("2-0", 2880),
     ("90", 90), (45, 45), ("UNLIMITED", float("inf"))],
)  # fmt: skip
def test_slurms_times(text, minutes):
    assert minutes_of(text) == minutes


def test_partitions_are_read(answers):
    assert doctor.partitions() == [
        Partition("cpu", True, 2160, 16000, 0),
        Partition("gpu", True, 270, 64000, 4),
        Partition("old", False, float("inf"), 1000, 0),
    ]


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [("gpu:2080ti:4", 4), ("gpu:3090:8(S:0-1)", 8), ("gpu:2", 2), ("(null)", 0),
     ("gpu:a100:2,gpu:v100:1", 3), ("gpu:nvidia_a100_3g.20gb:2(S:0),mps:100", 2)],
)  # fmt: skip
def test_gpus_of_a_node(gres, gpus):
    assert sum(map(int, doctor.GRES.findall(gres))) == gpus


def test_the_partition_file_is_read(tmp_path):
    path = tmp_path / "partitions.yaml"
    path.write_text("partitions: {a: {max_runtime: 1-00:00:00, max_mem_mb: 5}, "
                    "b: {max_gpu: 1, max_runtime: 90}}")  # fmt: skip
    found = doctor.read_partitions(path)
    assert found == {"a": Limits(1440, 5, 0), "b": Limits(90, float("inf"), 1)}


def test_the_doctors_job_is_submitted_as_the_profile_says(tmp_path):
    profile = tmp_path / "config.yaml"
    profile.write_text(
        "default-resources:\n  - slurm_account=lab\n  - nodes=1\n  - constraint='sky'\n"
        "set-resources:\n  train_scvi: {gpu_model: a100}\n"
    )
    asked = ["--account=lab", "--constraint=sky"]
    assert doctor.profile_flags(profile, gpu=False) == asked
    assert doctor.profile_flags(profile, gpu=True) == [*asked, "--gpus=a100:1"]
    assert doctor.profile_flags(tmp_path / "none", gpu=True) == ["--gpus=1"]


def levels(findings) -> dict[str, str]:
    return {finding.what: finding.level for finding in findings}


def test_limits_against_what_rules_ask(answers, tmp_path):
    chosen = tmp_path / "partitions.yaml"
    chosen.write_text("partitions: {cpu: {}, gpu: {max_gpu: 1}}")
    fits = [Need("a", 15000, 2000), Need("b", 60000, 200, 1)]
    chosen.write_text("partitions: {cpu: {}, gpu: {}}")  # the plugin would send no GPU job there
    assert levels(doctor.of_partitions(chosen, fits))["limits"] == "error"
    chosen.write_text("partitions: {cpu: {max_runtime: 60}, gpu: {max_gpu: 1}}")
    assert levels(doctor.of_partitions(chosen, fits))["limits"] == "error"
    chosen.write_text("partitions: {cpu: {}, gpu: {max_gpu: 1}}")
    assert levels(doctor.of_partitions(chosen, fits))["limits"] == "ok"
    found = list(doctor.of_partitions(chosen, [*fits, Need("c", 1000, 300, 1)]))
    [bad] = [finding for finding in found if finding.level == "error"]
    assert "c asks for 1000 MB, 300 min, 1 GPUs; cpu allows 0 GPUs; gpu allows 270" in bad.found
    assert "--set-resources c:runtime" in bad.mend


@pytest.mark.parametrize("text", ["", "x: 1", "partitions: {nope: {}}", "partitions: {old: {}}"])
def test_a_partition_file_that_does_not_fit_the_cluster(answers, tmp_path, text):
    chosen = tmp_path / "partitions.yaml"
    chosen.write_text(text)
    assert levels(doctor.of_partitions(chosen, []))["partitions"] == "error"
    assert doctor.write_partitions(chosen).level == "ok"
    assert "partitions" not in levels(doctor.of_partitions(chosen, []))


def test_commands_and_accounting(answers, monkeypatch):
    assert levels(doctor.of_commands()) == {"Slurm": "ok", "accounting": "ok"}
    answers["show config"] = "AccountingStorageType = accounting_storage/none\nMinJobAge = 10 sec"
    assert levels(doctor.of_commands()) == {"Slurm": "ok", "accounting": "note", "status": "note"}
    mends = [f.mend for f in doctor.of_commands() if f.what == "status"]
    assert "status-command: sacct" not in mends[0], "which waits for ever where accounting is off"
    answers["show config"] = None
    assert levels(doctor.of_commands()) == {"Slurm": "error"}
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)
    assert "sbatch" in next(doctor.of_commands()).found


def test_disk_space_access_and_clock(tmp_path, monkeypatch):
    assert levels(doctor.of_disk(tmp_path / "new", "results")) == {"results": "ok"}
    (tmp_path / "file").write_text("")
    assert levels(doctor.of_disk(tmp_path / "file", "results")) == {"results": "error"}
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 10**9)
    now = time.time()
    monkeypatch.setattr(doctor.time, "time", lambda: now + 60)
    assert levels(doctor.of_disk(tmp_path, "scratch")) == {"scratch": "note", "clock": "error"}
    assert levels(doctor.of_disk(tmp_path, "results")) == {"results": "error", "clock": "error"}


def test_packages(monkeypatch):
    assert levels(doctor.of_packages()) == {"packages": "ok"}
    monkeypatch.setattr(doctor, "PACKAGES", ("atlasmap", "no-such-package"))
    assert levels(doctor.of_packages()) == {"packages": "error"}


def test_job_times(answers):
    asked = slurm.job_times(environment={"SLURM_JOB_ID": "7"})
    assert asked.end - asked.start == 3600
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "5", "SLURM_JOB_END_TIME": "65"}
    assert slurm.job_times(environment=given) == slurm.JobTimes(5, 65)
    assert slurm.job_times(environment={}) is None
    answers["show job"] = JOB.replace("EndTime=2026-11-20T11:00:00", "EndTime=Unknown")
    assert slurm.job_times(environment={"SLURM_JOB_ID": "7"}) is None


def test_no_slurm_no_answer(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert slurm.ask("squeue") is None and slurm.job("7") == {} and slurm.accounted("7") == {}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The log of a job that was killed: no record."""
    monkeypatch.chdir(tmp_path)
    log = Path("results/lung/logs/seed0/train_scvi.log")
    log.parent.mkdir(parents=True)
    log.write_text(
        "10:00:00 atlasmap train-scvi 'a b.h5ad' --out x\n"
        "10:00:00 slurm job 7 on g1, attempt 2\n10:00:01 device: cpu\n"
    )
    os.link(log, log.with_name("train_scvi.attempt2.log"))
    return log


def said(asked: str | None = None) -> str:
    return why.explain(asked, Path("results"))


def test_a_job_killed_for_its_memory(job, answers):
    text = said("train_scvi")
    assert text.startswith("seed0/train_scvi failed (host_memory; attempt 2, on g1).")
    assert "MaxRSS 1900M" in text.replace("\n", " ") and "ReqMem 2000M" in text.replace("\n", " ")
    assert "By hand: atlasmap train-scvi 'a b.h5ad' --out x" in text
    assert "--set-resources RULE:mem_mb" in text.replace("\n", " ")


@pytest.mark.parametrize(
    ("state", "slurm_log", "kind"),
    [
        ("TIMEOUT", "", "walltime"),
        ("PREEMPTED", "", "preempted"),
        ("NODE_FAIL", "", "node"),
        ("CANCELLED by 0", "", "cancelled"),
        ("FAILED", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0", "host_memory"),
        ("FAILED", "*** JOB 7 ON g1 CANCELLED AT 2026 DUE TO TIME LIMIT ***", "walltime"),
        ("FAILED", "", "killed"),
    ],
)
def test_other_ends(job, answers, state, slurm_log, kind):
    answers["sacct"] = ACCOUNTED.replace("OUT_OF_MEMORY", state).replace("1900.5M", "200M")
    folder = why.SLURM_LOGS / "rule_train_scvi" / "0"
    folder.mkdir(parents=True)
    (folder / "7.log").write_text(slurm_log)
    assert f"({kind};" in said("train_scvi")


def test_a_record_says_more_than_slurm(job, answers):
    error = AtlasmapError("TRAINING_NAN", expected="e", found="epoch 3", mend="lower the rate")
    os.environ.pop("SLURM_JOB_ID", None)
    write_failure(failure_of(error, ["train-scvi", "x"], 1), job)
    text = " ".join(said().split())
    assert "(nan;" in text and "TRAINING_NAN: epoch 3" in text and "lower the rate" in text
    assert "By hand: atlasmap train-scvi x" in text and "expected: e." in text


def test_a_job_that_still_writes_has_not_failed(job, answers):
    answers["sacct"] = answers["show job"] = None
    assert " failed (killed;" in said()
    with open(job, "rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is waiting or running" in said() and "is waiting or running" in said("train_scvi")
        other = job.with_name("train_scanvi_fixed.log")
        write_failure(failure_of(KeyError("x"), ["a"], 1), other)
        other.write_text("x")
        os.utime(other, (1, 1))
        assert said().startswith("seed0/train_scanvi_fixed failed"), "however old"
    assert why.find_log(None, Path("results")) == job


def test_forgotten_jobs_and_jobs_without_slurm(job, answers):
    answers["sacct"] = answers["show job"] = None
    assert "Slurm has forgotten job 7" in said() == said("train_scvi")
    job.write_text("10:00:00 atlasmap train-scvi x\n")
    assert "not under Slurm" in said(str(job))


@pytest.mark.parametrize(
    ("state", "kind"),
    [("TIMEOUT", "walltime"), ("CANCELLED by 7", "cancelled"), ("PREEMPTED", "preempted"),
     ("FAILED", "preempted")],
)  # fmt: skip
def test_slurm_knows_who_sent_a_signal(job, answers, state, kind):
    answers["sacct"] = ACCOUNTED.replace("OUT_OF_MEMORY", state)
    write_failure(failure_of(Stopped("SIGTERM came"), ["train-scvi", "x"], 2), job)
    assert f"({kind};" in said()


def test_jobs_that_run_and_jobs_that_ended_well(job, answers):
    answers["sacct"] = ACCOUNTED.replace("OUT_OF_MEMORY", "RUNNING")
    assert "is waiting or running" in said()
    job.with_name("train_scvi.attempt2.log").unlink()
    assert "did not fail" in said("train_scvi")
    with pytest.raises(AtlasmapError, match="WHY_NO_LOG"):
        said()


def test_a_job_that_failed_before_it_began(job, answers):
    log = why.SLURM_LOGS / "rule_train_scvi" / "lung_0" / "8.log"
    log.parent.mkdir(parents=True)
    log.write_text(
        "WorkflowError:\nFailed to create output directory x.\n"
        "PermissionError: [Errno 1] Operation not permitted: 'x'\nError in rule train_scvi:\n"
        f"    log: {job} (check log file(s) for error details)\n    shell:\n"
        f"        atlasmap --log {job} --attempt 1 train-scvi y\nWorkflowError:\n"
    )
    assert "(host_memory;" in said("train_scvi"), "it has a log of its own"
    job.write_text("")
    for text in (said(), said("train_scvi")):
        assert text.startswith("rule_train_scvi/lung_0 failed before atlasmap began.")
        assert (
            "Operation not permitted" in " ".join(text.split())
            and f"By hand: atlasmap --log {job}" in text
        )


def test_no_such_log(tmp_path):
    with pytest.raises(AtlasmapError, match="WHY_NO_LOG"):
        why.find_log("train_scvi", tmp_path)


@pytest.mark.parametrize("asked", ["train_scvi", "train-scvi", "train"])
def test_a_rule_or_its_command_may_be_named(job, asked):
    assert why.find_log(asked, Path("results")) == job


def test_a_command_whose_rule_is_called_otherwise(job):
    other = job.with_name("seal_reference.log")
    other.write_text("10:00:00 atlasmap seal results/a\n")
    write_failure(failure_of(KeyError("x"), ["seal"], 1), other)
    assert why.find_log("seal", Path("results")) == other
    other.rename(job.with_name("closing.log"))
    assert why.find_log("seal", Path("results")) == job.with_name("closing.log")


def test_the_last_failure_is_found(job, answers):
    other = job.with_name("train_scanvi_fixed.log")
    other.write_text("x")
    os.utime(other, (1, 1))
    assert why.find_log("train", Path("results")) == job == why.find_log(None, Path("results"))
    job.with_name("train_scvi.attempt2.log").unlink()
    write_failure(failure_of(KeyError("x"), ["a"], 1), other)
    assert why.find_log("train", Path("results")) == other == why.find_log(None, Path("results"))
    write_failure(failure_of(KeyError("x"), ["a"], 1), job)
    assert why.find_log(None, Path("results")) == job
    failure_path(job).unlink()


def test_findings_are_readable():
    text = str(doctor.Finding("error", "GPU", "none", "buy one"))
    assert re.match(r"error GPU +none\n +→ buy one$", text)
