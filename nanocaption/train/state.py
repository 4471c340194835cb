"""A run's state as a checkpoint holds it: taken at a step's end, compared with the present one, put back."""

import contextlib
import math
import platform
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanocaption.base import devices
from nanocaption.base.version import VERSION
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.train import optim, sharding


def rng_state() -> dict[str, Tensor]:
    """The global generators of python, numpy, torch and, where there is one, the current CUDA device, as tensors."""
    _, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor(math.nan if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Afterwards the global generators are where they were, whatever was drawn, or raised, inside."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def check_rng_state(state: dict[str, Tensor], origin: str) -> None:
    """Raise ValueError unless `state` has the tensors of rng_state(), in their shapes."""
    expected = rng_state()
    expected.pop("cuda", None)  # not where a run of a GPU goes on without one, or the other way round
    for name, tensor in expected.items():
        if name not in state or state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
            raise ValueError(f"{origin} holds no usable state of the generator {name!r}.")


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Restore what rng_state() gave."""
    gauss = state["python_gauss"].item()
    random.setstate((3, tuple(state["python"].tolist()), None if math.isnan(gauss) else gauss))
    position, has_gauss, cached = state["numpy_rest"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


# Where two runs differ in one of these, their sums may round differently.
_EXACT = ("python", "torch", "cuda", "cudnn", "device", "machine", "threads", "processes", "precision", "deterministic")


def take_state(
    model: ImageToTextModel,
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
        "written_by": f"nanoCaption {VERSION}",
    }


def restore_state(
    saved: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    origin: str,
) -> None:
    """Put optimizer, scaler and this rank's generators back; all is checked before anything is assigned.

    Raises ValueError naming what does not fit. A rank that the saved run did not have keeps its generators.
    """
    state = optim.positional_state(optimizer, saved["optimizer_state_dict"])
    generators = saved["rng_state_dict"].get(str(devices.rank()))
    if generators is not None:
        check_rng_state(generators, origin)
    optimizer.load_state_dict(state)
    if saved["scaler_state_dict"]:  # empty where the run did not use fp16
        scaler.load_state_dict(saved["scaler_state_dict"])
    if generators is not None:
        set_rng_state(generators)


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
        "processes": devices.world_size(),
        "precision": str(precision).removeprefix("torch."),
        "deterministic": deterministic,
    }


def environment_changes(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """"name: old -> new" for whatever keeps a resumed run from being exact."""
    return [f"{name}: {saved[name]} -> {now[name]}" for name in _EXACT if saved[name] != now[name]]


def _on_cpu(tensor: Tensor, part: nn.Parameter | None = None, copy: bool = True) -> Tensor:
    found = sharding.whole(tensor.detach(), part)
    return found.to("cpu", copy=copy) if devices.rank() == 0 else torch.empty(0)
