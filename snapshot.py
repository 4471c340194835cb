"""A run's state as a checkpoint holds it: taken at a step's end, compared with the present one, put back."""

import platform
import time
from typing import Any

import torch
from torch import Tensor, nn

import checkpoint
import distributed
import model as models
import optim
import sharding

# Where two runs differ in one of these, their sums may round differently.
_EXACT = ("python", "torch", "cuda", "cudnn", "device", "machine", "threads", "processes", "precision", "deterministic")


def take(
    model: models.ImageToTextModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    generators: list[dict[str, Tensor]],
    values: dict[str, Any],
) -> dict[str, Any]:
    """The state for checkpoint.save, on the CPU and independent of what the training does next; all ranks together.

    Tensors are whole, so that a checkpoint does not tell whether FSDP spread them. On the first rank: the others only
    take part in gathering them, one at a time, and get empty ones.
    generators: checkpoint.rng_state() of every rank. values: everything else, JSON-ready.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    weights = model.state_dict()
    state = optim.state_by_name(optimizer)
    parts = {n: p for g in optimizer.param_groups for n, p in zip(g["param_names"], g["params"], strict=True)}
    state["state"] = {
        name: {slot: _on_cpu(tensor, part=None if slot == "step" else parts[name]) for slot, tensor in slots.items()}
        for name, slots in state["state"].items()
    }
    return {
        **values,
        "model_state_dict": {
            # What never changes need not be copied, as long as it is where the writer can read it.
            name: _on_cpu(tensor, copy=name not in frozen)
            for name, tensor in weights.items()
        },
        "optimizer_state_dict": state,
        "scaler_state_dict": scaler.state_dict(),
        "rng_state_dict": {str(rank): state for rank, state in enumerate(generators)},
        "saved_at": time.time(),
        "written_by": f"nanoCaption {checkpoint.VERSION}",
    }


def restore(
    saved: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    origin: str,
) -> None:
    """Put optimizer, scaler and this rank's generators back; all is checked before anything is assigned.

    Raises ValueError naming what does not fit. A rank that the saved run did not have keeps its generators.
    """
    state = optim.positional_state(optimizer, saved["optimizer_state_dict"])
    generators = saved["rng_state_dict"].get(str(distributed.rank()))
    if generators is not None:
        checkpoint.check_rng_state(generators, origin)
    optimizer.load_state_dict(state)
    if saved["scaler_state_dict"]:  # empty where the run did not use fp16
        scaler.load_state_dict(saved["scaler_state_dict"])
    if generators is not None:
        checkpoint.set_rng_state(generators)


def environment(device: torch.device, precision: torch.dtype, deterministic: bool) -> dict[str, Any]:
    """What decides how sums are rounded, apart from the settings; JSON-ready."""
    on_cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_cuda else None,
        "cudnn": torch.backends.cudnn.version() if on_cuda else None,
        "device": torch.cuda.get_device_name(device) if on_cuda else device.type,
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "precision": str(precision).removeprefix("torch."),
        "deterministic": deterministic,
    }


def environment_changes(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """"name: old -> new" for whatever keeps a resumed run from being exact."""
    return [f"{name}: {saved[name]} -> {now[name]}" for name in _EXACT if saved[name] != now[name]]


def _on_cpu(tensor: Tensor, part: nn.Parameter | None = None, copy: bool = True) -> Tensor:
    found = sharding.whole(tensor.detach(), part)
    return found.to("cpu", copy=copy) if distributed.rank() == 0 else torch.empty(0)
