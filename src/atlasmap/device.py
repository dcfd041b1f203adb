"""Choice of the torch device from the config's `device`; the device is logged."""

import logging
import os

import torch

from atlasmap.errors import AtlasmapError
from atlasmap.settings import Device

log = logging.getLogger("atlasmap")
GPU_WAS_ASKED = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS")


def in_gpu_job(environment=os.environ) -> bool:
    """Whether this process runs in a cluster job that asked for a GPU."""
    return "SLURM_JOB_ID" in environment and any(environment.get(k) for k in GPU_WAS_ASKED)


def usable_cuda() -> str | None:
    """Return None if torch can compute on the GPU, else the reason why not."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    try:
        torch.ones(2, device="cuda").sum().item()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def pick_device(device: Device) -> torch.device:
    """The torch device for a config's `device`.

    Raises `GPU_UNUSABLE` for `cuda`, and for `auto` in a cluster job that asked for a GPU, when
    torch cannot use one.
    """
    if device == "cpu":
        chosen = torch.device("cpu")
    else:
        why = usable_cuda()
        if why and (device == "cuda" or (device == "auto" and in_gpu_job())):
            raise AtlasmapError(
                "GPU_UNUSABLE",
                expected="a GPU that torch can use",
                found=why,
                mend="install a CUDA build of torch (envs/README.md), ask for another GPU type, "
                "or set device: cpu",
            )
        chosen = torch.device("cpu" if why else "cuda")
        # Deterministic kernels; operations without one are reported in the log.
        # (torch.use_deterministic_algorithms would first import torch's compiler, two seconds per
        # process; cuBLAS needs the variable.)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_deterministic_debug_mode("warn" if chosen.type == "cuda" else "default")
    name = torch.cuda.get_device_name() if chosen.type == "cuda" else "cpu"
    log.info("device: %s (%s), %d threads", chosen.type, name, torch.get_num_threads())
    return chosen
