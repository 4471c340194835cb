"""The device of a process with its number format, and how processes work together: rank, sum, gather, turns.

On one process, without torchrun, every function of the second half gives back what it was given.
"""

import contextlib
import importlib
import os
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


# --- The device ---


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """auto: cuda, else mps, else cpu. SystemExit where the named device is not there.

    local_rank: which of this machine's processes asks; where no GPU is named it gets that one, as its current device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SystemExit(f"DEVICE = {name!r}: this machine has {torch.cuda.device_count()} CUDA device(s). Use 'auto'.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SystemExit("DEVICE = 'mps': this machine has none. Use 'auto'.")
    if device.type == "cuda" and local_rank is not None:
        torch.cuda.set_device(device)  # NCCL gathers through the current device
    return device


def named_device(name: str | torch.device) -> torch.device:
    """What somebody calls a device. ValueError with one line where there is none such."""
    try:
        return pick_device(str(name))
    except (RuntimeError, SystemExit) as error:
        known = isinstance(error, SystemExit)
        told = str(error).replace("DEVICE = ", "device = ") if known else f"device = {str(name)!r}: there is no such"
        raise ValueError(told if known else f"{told} device. Give 'cpu', 'cuda', 'cuda:1', 'mps' or 'auto'.") from error


def named_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """What somebody calls a type of weights. ValueError with one line where it is none."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ValueError(f"dtype = {name!r}: must be {', '.join(known)}.")
    return known[name]


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """auto: bf16 on a CUDA device that has it, else fp16 there; fp32 elsewhere."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()


# --- Processes ---


def start(device_kind: str) -> None:
    """Join the process group that torchrun announces in the environment; nothing to do on one process."""
    if world_size_of_environment() > 1 and not dist.is_initialized():
        # This module binds the group of its time of import as a default argument (torch 2.14). Imported later, as
        # torch's optimizers do on their way, it keeps the group and gloo's threads alive beyond stop().
        importlib.import_module("torch.distributed.nn.functional")
        # The others wait while the first process downloads a data set or fills the feature cache.
        dist.init_process_group("nccl" if device_kind == "cuda" else "gloo", timeout=timedelta(hours=6))


def stop() -> None:
    """Leave the process group, with none of its threads left at work.

    One of gloo's that still holds the tensor of the last sum needs the GIL to give it back. From an interpreter that
    ends it gets none and aborts the process, whose work is done ("terminate called without an active exception").
    """
    if dist.is_initialized():
        group = weakref.ref(dist.group.WORLD)
        dist.destroy_process_group()  # waits for the threads where nobody else keeps the group
        if group() is not None:  # torch's tables of FSDP do
            time.sleep(0.3)


def world_size_of_environment() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_of_environment() -> int:
    """Which process torchrun says this is, also where it has not joined the others."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of this machine's processes this is; names its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks, in place; returns it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def max_(*numbers: int) -> list[int]:
    """The largest value of each number over all ranks: how ranks agree on what one of them was asked to do."""
    if not dist.is_initialized():
        return list(numbers)
    tensor = torch.tensor(numbers, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sum the gradients over all ranks, in place.

    One flat buffer in a fixed order. DistributedDataParallel regroups its buckets after the first step, so that a
    resumed run of three or more ranks would sum in another order than the uninterrupted one.
    """
    if not dist.is_initialized():
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = sum_(torch.cat([g.reshape(-1) for g in gradients]))
    for parameter, gradient in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def gather(rows: list[T]) -> list[T]:
    """The rows of all ranks in one list, rank after rank, on every rank. Rows are plain JSON-like data."""
    if not dist.is_initialized():
        return rows
    gathered: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows (n, ...) of all ranks, rank after rank, on every rank, and where this rank's begin; n may differ."""
    if not dist.is_initialized():
        return rows, 0
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])  # a gather wants equal shapes
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    parts = [part[:count] for part, count in zip(found, counts, strict=True)]
    return torch.cat(parts), sum(counts[: rank()])


def first_rank_first(make: Callable[[], T]) -> T:
    """Call `make` on the first process, then on the others, which find its result on the disk and print nothing."""
    if rank() == 0:
        result = make()
        barrier()
        return result
    barrier()
    with contextlib.redirect_stdout(None):
        return make()


def console(text: str) -> None:
    """Print on the first process only."""
    if rank() == 0:
        print(text, flush=True)
