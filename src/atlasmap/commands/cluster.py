"""Commands about runs on a cluster: check it, forecast, follow a run, explain failures."""

import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import write_json
from atlasmap.jobs.doctor import Need
from atlasmap.settings import Device


def doctor(
    *,
    results: Path = Path("results"),
    partitions: Path = Path("slurm/partitions.yaml"),
    needs: list[Need] | None = None,
    gpu: bool = True,
    job: bool = False,
    inside: Annotated[bool, Parameter(show=False)] = False,
    write_partitions: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Check that everything a run on this cluster needs is there.

    Exits with 2 if something is missing.

    Example: atlasmap doctor --write_partitions --job

    Parameters
    ----------
    results
        Folder in which results will be written; its free space is checked.
    partitions
        Partition file of the Snakemake profile: the limits of each partition.
    needs
        Memory (MB), run time (minutes) and GPUs of each rule's jobs (JSON); given by the workflow.
    gpu
        Whether jobs will need a GPU.
    job
        Also run these checks inside a one-minute Slurm job.
    write_partitions
        First write the partition file, from the limits that Slurm reports.
    """
    from atlasmap.jobs import doctor as look

    if write_partitions:
        print(look.write_partitions(partitions))
    findings = []
    if not inside:
        findings += look.of_commands()
        if not any(finding.level == "error" for finding in findings):
            findings += look.of_partitions(partitions, needs or [])
    findings += look.of_packages()
    findings += look.of_disk(results, "results")
    findings += look.of_disk(Path(tempfile.gettempdir()), "scratch")
    if inside:
        findings += look.of_gpu(gpu)
    lines = [str(finding) for finding in findings]
    if job and not any(line.startswith("error") for line in lines):
        lines += ["in a job:", *look.in_a_job(partitions, results, gpu)]
    print("\n".join(lines))
    errors = [line.split()[1] for line in lines if line.startswith("error")]
    if errors and not inside:
        raise AtlasmapError(
            "DOCTOR_FOUND",
            expected="everything that a run on this cluster needs",
            found=f"{len(errors)} errors above: {listed(dict.fromkeys(errors))}",
            mend="see the arrows above; snakemake --no-hooks runs without this look",
        )


def why(job: str | None = None, *, results: Path = Path("results")) -> None:
    """Explain a failed job: what failed, why, what to change, and the command to run it by hand.

    Run it on the machine on which Snakemake runs. Without accounting, Slurm forgets a job some
    minutes after its end.

    Example: atlasmap why train_scvi

    Parameters
    ----------
    job
        Name of a rule or command (its last failed job is explained), or a log file. Default: the
        job that failed last.
    results
        Folder of all results.
    """
    from atlasmap.jobs.why import explain

    print(explain(job, results))


def status(folder: Path | None = None) -> None:
    """Show the progress of a run: jobs done, running and failed per command, the epoch of each
    training, and the time left.

    Example: atlasmap status results/pbmc68k

    Parameters
    ----------
    folder
        Folder results/{atlas}. Default: the atlas below results that ran last.
    """
    from atlasmap.forecast.status import latest_atlas, status_text

    folder = folder or latest_atlas()
    print(f"{folder}\n\n{status_text(folder)}")


def plan(
    folder: Path,
    *,
    configfile: list[Path] | None = None,
    device: Device = "any",
    compare: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Forecast time and memory of a run's training and mapping from a probe of half a minute.

    Writes forecast.json into the folder. Jobs of the workflow then request these resources, and
    dry runs show them. Measurements of earlier runs in results/ correct the forecast.

    Example: atlasmap plan results/ATLAS --configfile my.yaml

    Parameters
    ----------
    folder
        Folder results/{atlas}, after its data were prepared by `snakemake check`.
    configfile
        Config files. Default: those recorded in data/contract.json, else config/config.yaml.
    device
        Device of the probe; choose the one on which the jobs will run.
    compare
        Compute nothing; compare the last forecast with the measurements of the jobs that ran
        since (forecast / measured).
    """
    from atlasmap.forecast.cost import compared

    if compare:
        table = compared(folder)
        whole = table[["forecast_s", "took_s"]].sum()
        print(table.round(2).to_string())
        print(f"in all: {whole['forecast_s']:.0f} s forecast, {whole['took_s']:.0f} s taken")
        return
    said = forecast_of(folder, configfile, device)
    write_json(folder / "forecast.json", said)
    print(forecast_table(said))
    print(f"forecast: {said['hours']:.2f} h of training and mapping (probed on {said['device']})")


def forecast_of(folder: Path, configfile: list[Path] | None, device: Device) -> dict:
    """The content of an atlas's forecast.json. Raises PLAN_NO_DATA."""
    import json

    from atlasmap.config import checked, merged, read_config
    from atlasmap.device import pick_device
    from atlasmap.forecast.cost import as_json, corrections, forecast
    from atlasmap.forecast.speed_probe import Sizes, probe
    from atlasmap.settings import Config

    contract = folder / "data" / "contract.json"
    if not contract.is_file():
        raise AtlasmapError(
            "PLAN_NO_DATA",
            expected=f"{contract}, which tells the data's size",
            found="no such file",
            mend="prepare the data first, which needs no GPU: snakemake check",
        )
    facts = json.loads(contract.read_text(encoding="utf-8"))
    given: dict = {}
    run = folder.absolute().parent.parent  # where paths in the contract start
    recorded = [run / path for path in facts["configfiles"]]
    for path in configfile or recorded or [Path("config/config.yaml")]:
        given = merged(given, read_config(path))
    config = checked(Config, given, "the config", "CONFIG_INVALID")
    sizes, chosen = Sizes.of(facts), pick_device(device)
    speeds = probe(sizes, config, chosen)
    raw = forecast(sizes, config, given, speeds)
    return as_json(raw, corrections(folder.parent), speeds, chosen)


def forecast_table(said: dict) -> str:
    """The forecast (content of forecast.json) as a text table."""
    import pandas as pd

    table = pd.DataFrame(said["forecast"])
    table["minutes"] = (table["seconds"] / 60).round(1)
    table["hours in all"] = (table["all_seconds"] / 3600).round(2)
    if said["device"] == "cpu":
        table["gpu_mb"] = 0
    shown = table[["rule", "jobs", "minutes", "hours in all", "mem_mb", "gpu_mb"]]
    return shown.astype({"mem_mb": int, "gpu_mb": int}).to_string(index=False)
