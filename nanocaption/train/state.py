"""A run's state as a checkpoint holds it: taken at a step's end, compared with the present one, put back.

Random generators are no part of it: every step and every validation seeds them (`seed_generators`) from SEED and its
own number, so that nothing that ran before can change what they give.
"""

import platform
import random
import time
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from nanocaption.base import devices
from nanocaption.base.tensors import State
from nanocaption.base.version import VERSION
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.train import optim, sharding


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, on the CPU and on all GPUs; seed: from order.seed_of."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def take_state(
    model: ImageToTextModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    values: Mapping[str, object],
    average: Mapping[str, Tensor] | None = None,
) -> State:
    """The state for checkpoint.save, on the CPU and independent of what the training does next; all ranks together.

    Tensors are whole, so that a checkpoint does not tell whether FSDP spread them. On the first rank: the others only
    take part in gathering them, one at a time, and get empty ones. values: everything else, JSON-ready. average: of the
    weights that train, where there is one: it is then the model, because it was validated; the weights stand beside it.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    state = optim.state_by_name(optimizer)
    state["state"] = {
        name: {slot: _on_cpu(tensor) for slot, tensor in slots.items()} for name, slots in state["state"].items()
    }
    weights, average = model.state_dict(), average or {}
    raw = {name: _on_cpu(weights[name]) for name in average}
    taken = {
        # What never changes need not be copied, as long as it is where the writer can read it.
        "model_state_dict": {n: _on_cpu(tensor, copy=n not in frozen) for n, tensor in {**weights, **average}.items()},
        **({"raw_state_dict": raw} if raw else {}),
        "optimizer_state_dict": state,
        "scaler_state_dict": scaler.state_dict(),
        "saved_at": time.time(),
        "written_by": f"nanoCaption {VERSION}",
    }
    return cast(State, {**values, **taken})


def restore_state(saved: State, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Put optimizer and scaler back. Raises ValueError naming what does not fit, before anything is assigned."""
    optimizer.load_state_dict(optim.positional_state(optimizer, saved["optimizer_state_dict"]))
    if saved["scaler_state_dict"]:  # empty where the run did not use fp16
        scaler.load_state_dict(saved["scaler_state_dict"])


def environment(device: torch.device, precision: torch.dtype, deterministic: bool) -> dict[str, object]:
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


def environment_changes(saved: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """"name: old -> new" for whatever keeps a resumed run from being exact."""
    return [f"{name}: {saved[name]} -> {value}" for name, value in now.items() if saved[name] != value]


def _on_cpu(tensor: Tensor, copy: bool = True) -> Tensor:
    found = sharding.whole(tensor.detach())
    return found.to("cpu", copy=copy) if devices.rank() == 0 else torch.empty(0)
