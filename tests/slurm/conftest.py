"""A real Slurm on this machine, and tiny atlases to run on it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
import zygote

from atlasmap.data.simulate import simulate
from atlasmap.files import sha256
from atlasmap.settings import SimulateSettings

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT.parent / "shared" / "slurm" / "local-slurm.sh"
BIN = Path(sys.executable).parent
LAB_DIR = Path(os.environ.get("SLURM_LAB_DIR", "/tmp/local-slurm"))
CONF = LAB_DIR / "etc" / "slurm.conf"
# Jobs of partition low are put back into the queue when high wants their node.
PREEMPTION = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=g1 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=g1 PriorityTier=10 PreemptMode=OFF
"""
SHEET = [
    ["id", "path", "role", "batch_key", "label_key", "truth_key", "obs_filter"],
    ["ref", "atlas.h5ad", "reference", "batch", "cell_type", "", "role == 'reference'"],
    ["query", "atlas.h5ad", "query", "batch", "", "cell_type", "role == 'query'"],
]
CONFIG = {
    "atlas": "tiny",
    "datasets": "sheet.tsv",
    "device": "any",  # the lab's GPUs are none that torch could use
    "variants": ["fixed"],
    "strategies": ["per_batch"],
    "seeds": [0],
    "data": {"n_top_genes": None},
    "scvi": {"n_hidden": 16, "n_latent": 5, "train": {"max_epochs": 4}},
    "scanvi": {"train": {"max_epochs": 4}},
    "surgery": {"max_epochs": 3},
    "calibration": {"scheme": "validation", "min_cells": 5},
}
SCVI = "results/tiny/seed0/reference/scvi/"


def slurm(*command: str) -> str:
    """Output of a Slurm command."""
    env = os.environ | {"SLURM_CONF": str(CONF)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def slurmctld(*, stop: bool = True) -> None:
    """Restart the controller; running jobs go on."""
    pid = int((LAB_DIR / "run" / "slurmctld.pid").read_text())
    if stop:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), 30, "slurmctld to stop")
    env = os.environ | {"SLURM_CONF": str(CONF), "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run(["slurmctld", "-f", str(CONF)], env=env, check=True, stdin=subprocess.DEVNULL)
    ping = ["scontrol", "ping"]
    wait_for(lambda: subprocess.run(ping, env=env, capture_output=True).returncode == 0, 30, "it")


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Until `condition` holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def cluster():
    """The lab's Slurm with a preemptible partition; stopped afterwards if it was started here."""
    if not LAB.is_file():
        pytest.skip(f"no Slurm to test on: {LAB} is not there")
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("the local Slurm needs root on Debian")
    was_up = subprocess.run([LAB, "status"], capture_output=True).returncode == 0
    started = subprocess.run([LAB, "start"], capture_output=True, text=True)
    if started.returncode != 0:
        pytest.skip(
            f"the local Slurm does not start: {started.stdout[-300:]}{started.stderr[-300:]}"
        )
    if "PreemptType" not in CONF.read_text():
        with CONF.open("a") as file:
            file.write(PREEMPTION)
        slurmctld()
        slurm("scontrol", "reconfigure")
    wait_for(lambda: "low" in slurm("sinfo", "-h", "-o", "%P"), 30, "the partitions")
    yield
    slurm("scancel", "-u", "root")
    if not was_up:
        subprocess.run([LAB, "stop"], capture_output=True)


@dataclass(frozen=True)
class Folder:
    """A working folder: a tiny atlas and its config."""

    path: Path

    def command(self, *args: str) -> list[str]:
        return [
            str(BIN / "snakemake"), "-s", str(ROOT / "Snakefile"), "--profile", str(ROOT / "slurm"),
            "--directory", str(self.path), "--configfile", str(self.path / "config.yaml"),
            "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10", *args,
        ]  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        """As a user has it who has activated nothing."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "VIRTUAL_ENV"))}
        return env | {"PATH": "/usr/local/bin:/usr/bin:/bin", "SLURM_CONF": str(CONF)}

    def locally(self, *targets: str) -> None:
        """Snakemake without Slurm, to its end; jobs start without their imports."""
        command = [str(BIN / "snakemake"), "-s", str(ROOT / "Snakefile"), "--cores", "2"]
        command += ["--directory", str(self.path), "--configfile", str(self.path / "config.yaml")]
        env = self.env | {"BASH_ENV": zygote.command()}
        subprocess.run([*command, "--", *targets], cwd=self.path, env=env, check=True,
                       capture_output=True)  # fmt: skip

    def start(self, *args: str) -> subprocess.Popen:
        """Snakemake in the background; its output in output.txt."""
        with (self.path / "output.txt").open("a") as file:
            return subprocess.Popen(
                self.command(*args), cwd=self.path, env=self.env, stdout=file, stderr=file,
                # Ctrl-C must reach it even if these tests run in the background.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    def run(self, *args: str, ok: bool = True) -> str:
        """Snakemake to its end."""
        code = self.start(*args).wait(timeout=900)
        assert (code == 0) == ok, self.output[-6000:]
        return self.output

    @property
    def output(self) -> str:
        return (self.path / "output.txt").read_text()

    def atlasmap(self, *args: str) -> str:
        """The command line, in this folder."""
        done = subprocess.run(
            [BIN / "atlasmap", *args], cwd=self.path, env=self.env, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    def why(self, *args: str) -> str:
        """atlasmap why, on one line."""
        return " ".join(self.atlasmap("why", *args).split())

    def submitted(self) -> list[str]:
        """Ids of the Slurm jobs so far."""
        return re.findall(r"submitted with SLURM jobid (\d+)", self.output)

    def log(self, rule: str) -> Path:
        return self.path / "results/tiny/logs/seed0" / f"{rule}.log"

    def logs(self, rule: str) -> str:
        """A job's log, and those of its earlier attempts."""
        return "".join(p.read_text() for p in sorted(self.log(rule).parent.glob(f"{rule}*.log")))

    def training(self, what: str = "scVI: epoch") -> bool:
        """Whether training has got somewhere."""
        return self.log("train_scvi").exists() and what in self.log("train_scvi").read_text()

    def processes(self, text: str) -> list[int]:
        """Processes in this folder whose command line has `text`."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line = (path / "cmdline").read_text().replace("\0", " ")
                if text in line and path.joinpath("cwd").resolve() == self.path:
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def half_written(self) -> list[str]:
        """Partial files and checkpoints that nobody needs any more."""
        top = self.path / "results"
        return [str(p) for p in top.rglob("*") if "partial" in p.name or p.name == ".checkpoints"]

    def hashes(self, below: str = "results/tiny") -> dict[str, str]:
        """Checksums of all results but logs and timings."""
        files = sorted((self.path / below).rglob("*"))
        keep = [f for f in files if f.is_file() and "logs" not in f.parts and f.name[0] != "."]
        return {str(f.relative_to(self.path)): sha256(f) for f in keep}


def new_folder(path: Path, **config) -> Folder:
    """A folder with a tiny atlas: three reference batches, two query batches."""
    path.mkdir(parents=True, exist_ok=True)
    settings = SimulateSettings(
        n_cells=500, n_genes=60, n_reference_batches=3, n_query_batches=2, n_lineages=2,
        n_types_per_lineage=2, seed=3,
    )  # fmt: skip
    simulate(settings).write_h5ad(path / "atlas.h5ad")
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG | config))
    (path / "sheet.tsv").write_text("\n".join("\t".join(row) for row in SHEET) + "\n")
    return Folder(path)


@pytest.fixture(scope="session")
def prepared(cluster, tmp_path_factory):
    """Data prepared (on this machine), scVI still to be trained: about half a minute's worth."""
    train = {"max_epochs": 4000}
    scvi = {"n_hidden": 16, "n_latent": 5, "train": train}
    folder = new_folder(
        tmp_path_factory.mktemp("prepared") / "work", scvi=scvi, checkpoint_minutes=0.05
    )
    folder.locally("results/tiny/data/contract.json")
    undisturbed = Folder(folder.path.parent / "undisturbed")
    shutil.copytree(folder.path, undisturbed.path, symlinks=True)
    undisturbed.locally(SCVI + "settings.json")
    return folder, undisturbed


@pytest.fixture
def work(prepared, tmp_path):
    """A copy of the prepared folder, and what its scVI must be in the end."""
    folder, undisturbed = prepared
    shutil.copytree(folder.path, tmp_path / "work", symlinks=True)
    yield Folder(tmp_path / "work"), undisturbed.hashes(SCVI)
    slurm("scancel", "-u", "root")
    wait_for(lambda: not slurm("squeue", "-h"), 60, "the queue to be empty")
