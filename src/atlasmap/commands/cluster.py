"""Commands for life on a cluster."""

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
    """Look whether everything is there that a run on this cluster needs.

    Exits with 2 if something is not.

    Example: atlasmap doctor --write_partitions --job

    Parameters
    ----------
    results
        Where results will be.
    partitions
        The profile's partition file.
    needs
        What rules ask for (JSON); the workflow gives it.
    gpu
        Whether jobs will need a GPU.
    job
        Look around in a one-minute job as well.
    write_partitions
        Write the partition file from what Slurm says of itself.
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
    """Say why a job failed: what, why, the command to run it by hand, what to change.

    Run it where Snakemake runs. Without Slurm's accounting a job is forgotten some minutes after
    its end.

    Example: atlasmap why train_scvi

    Parameters
    ----------
    job
        The name of a rule or command (its last failed job), or a log file; otherwise what failed
        last.
    results
        Where results are.
    """
    from atlasmap.jobs.why import explain

    print(explain(job, results))


def status(folder: Path | None = None) -> None:
    """Say how far a run is: jobs done, running and failed by command, how far each training is,
    and the time left.

    Example: atlasmap status results/pbmc68k

    Parameters
    ----------
    folder
        results/{atlas}; otherwise the one below results that ran last.
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
    """Forecast time and memory of a run's training and mapping, by half a minute's probe.

    Writes forecast.json into the folder; the workflow's jobs then ask for what it says, and dry
    runs show it. What earlier runs in results/ took corrects it.

    Example: atlasmap plan results/ATLAS --configfile my.yaml

    Parameters
    ----------
    folder
        results/{atlas}, once its data are prepared: snakemake check.
    configfile
        Config files; otherwise those the contract names, else config/config.yaml.
    device
        Where to probe: where jobs will run, or as like it as can be.
    compare
        Only show the last forecast against what the jobs took since (forecast / taken).
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
    """forecast.json of an atlas; raises PLAN_NO_DATA."""
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
    """A forecast as text."""
    import pandas as pd

    table = pd.DataFrame(said["forecast"])
    table["minutes"] = (table["seconds"] / 60).round(1)
    table["hours in all"] = (table["all_seconds"] / 3600).round(2)
    if said["device"] == "cpu":
        table["gpu_mb"] = 0
    shown = table[["rule", "jobs", "minutes", "hours in all", "mem_mb", "gpu_mb"]]
    return shown.astype({"mem_mb": int, "gpu_mb": int}).to_string(index=False)
