"""A .safetensors file that is on the disk and verified, and whether tensors fit a model."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Required, TypedDict

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nanocaption.base.files import sync_to_disk

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_THREADS = min(4, os.cpu_count() or 1)
_PART = 2**18  # bytes that are read and then hashed


class OptimizerState(TypedDict):
    """An optimizer's state by parameter name and slot, and the settings of its groups, JSON-ready."""

    state: dict[str, dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


class State(TypedDict, total=False):
    """What a checkpoint holds. That of an exported folder has the first group alone.

    Everything but tensors is JSON-ready.
    """

    config: Required[dict[str, Any]]  # all settings by name
    tokenizer: Required[str]  # its JSON
    model_arguments: Required[dict[str, Any]]  # what rebuilds a pretrained encoder, see ImageToTextModel.arguments
    model_state_dict: Required[dict[str, Tensor]]
    epoch: Required[int]  # finished epochs
    step: Required[int]  # finished optimizer steps
    best_val_loss: float | None
    best_cider: float | None
    captions_sha256: str
    rewarded_steps: int  # of self-critical training; none where a checkpoint does not say
    used: Tensor  # the note of its run's pictures and captions, see train/used.py; of a streamed set those to validate
    questions_sha256: str  # of a run on questions: over those it learns from, which of drawn pictures are made anew
    stream_sha256: str  # of a run on a streamed set: its pictures and what its order depends on
    stream_own: dict[str, Any]  # the same of what it uses alone: pictures of each split, and their sha256
    encoding: int  # of the data of its run, tokenizer.ENCODING; 1 where a checkpoint does not say
    written_by: str
    card: str  # of an exported folder: its README.md

    average_of: list[dict[str, Any]]  # of a mean of checkpoints: name, sha256, step, epoch and weight of each
    averaged_steps: int  # steps that the moving average has taken in; the model is that average where it is above 0

    raw_state_dict: dict[str, Tensor]  # beside a moving average: the weights that the training goes on with
    optimizer_state_dict: OptimizerState
    scaler_state_dict: dict[str, Any]
    scheduler_state_dict: dict[str, Any]  # what the learning rate depends on
    config_constants: dict[str, Any]
    environment: dict[str, Any]
    step_in_epoch: int
    validations_without_gain: int
    nonfinite_in_a_row: int
    captions_per_step: int
    groups_per_step: int  # in its place in earlier checkpoints
    steps_per_epoch: int
    wandb_run_id: str | None
    saved_at: float  # seconds since 1970


def is_member(entry: object) -> bool:
    """Whether something is an entry of "average_of"."""
    kinds: dict[str, tuple[type, ...]] = {
        "name": (str,), "sha256": (str,), "step": (int,), "epoch": (int,), "weight": (int, float),
    }  # fmt: skip
    return isinstance(entry, dict) and all(type(entry.get(name)) in kind for name, kind in kinds.items())


def weights_told(state: State) -> str | None:
    """What the weights of the model are where they are not those of a training's last step, for messages; else None."""
    if members := state.get("average_of"):
        return f"the mean of {len(members)} checkpoints ({', '.join(member['name'] for member in members)})"
    if steps := state.get("averaged_steps"):
        return f"the moving average of {steps:,} steps (EMA_DECAY)"
    return None


def slots_by_name(state: OptimizerState) -> dict[str, Tensor]:
    """The tensors of an optimizer's state as "exp_avg of decoder.bias", for messages."""
    return {f"{slot} of {name}": tensor for name, slots in state["state"].items() for slot, tensor in slots.items()}


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A .safetensors file of contiguous tensors on the CPU, on the disk and compared with them bit by bit.

    Raises OSError where the disk refuses, ValueError where it gives back something else.
    """
    try:
        path.touch()
        mode = path.stat().st_mode  # safetensors makes the file private to its owner, whatever the umask says
        safetensors.torch.save_file(tensors, path, metadata=metadata)
        path.chmod(mode)
        sync_to_disk(path)
        _compare(path, tensors, metadata)
    except safetensors.SafetensorError as error:  # how its writer tells of a full disk
        raise OSError(str(error)) from error


def hashes_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The sha256 of each tensor's bytes, contiguous and on the CPU, by several threads."""
    with ThreadPoolExecutor(_THREADS) as threads:  # hashing lets other threads run
        found = threads.map(lambda tensor: hashlib.sha256(_bytes_of(tensor)).hexdigest(), tensors.values())
        return dict(zip(tensors, found, strict=True))


def read_hashed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors file, and the sha256 of each one's bytes: read once, by several threads.

    Read, not mapped: a file that is cut short later would kill a process that maps it. A part is hashed while it is in
    the processor's cache. Raises ValueError where the file is not what its header says, OSError where it cannot be
    read.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length), object_pairs_hook=without_duplicates)
        size = os.fstat(file.fileno()).st_size - 8 - length
    entries.pop("__metadata__", None)
    tensors: dict[str, Tensor] = {}
    places: dict[str, int] = {}
    place = 0
    try:
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            shape, dtype = entry["shape"], _DTYPES[entry["dtype"]]
            if begin != place or end - begin != math.prod(shape) * dtype.itemsize or end > size:
                raise ValueError(f"{name} does not lie where its size and the others' put it")
            tensors[name], places[name], place = torch.empty(shape, dtype=dtype), 8 + length + begin, end
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"its header is no list of tensors: {error!r}") from error
    if place != size:
        raise ValueError(f"it holds {size:,} bytes of tensors, and its header names {place:,}")
    with ThreadPoolExecutor(_THREADS) as threads:
        read = threads.map(lambda name: _read_one(path, places[name], tensors[name]), tensors)
        return tensors, dict(zip(tensors, read, strict=True))


def _read_one(path: Path, start: int, tensor: Tensor) -> str:
    """Fill the tensor from the file; the sha256 of its bytes."""
    digest, content = hashlib.sha256(), _bytes_of(tensor)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        done = 0
        while done < len(content):
            got = file.readinto(content[done : done + _PART])
            if not got:
                raise ValueError("it ends within its tensors")
            digest.update(content[done : done + got])
            done += got
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """For json.loads: a name that occurs twice is a ValueError. (json and safetensors both take the last one.)"""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it holds a name twice")
    return found


def check_fits(model: torch.nn.Module | Mapping[str, Tensor], saved: Mapping[str, Tensor], origin: str) -> None:
    """Raise ValueError, listing the differences, unless names, shapes and dtypes of `saved` are those of the model.

    model: or what stands for it, tensors of the names, shapes and dtypes that are expected.
    """
    expected = model.state_dict() if isinstance(model, torch.nn.Module) else model
    problems = [f"lacks {name}" for name in expected.keys() - saved.keys()]
    problems += [f"has {name}, which the model has not" for name in saved.keys() - expected.keys()]
    for name in expected.keys() & saved.keys():
        a, b = saved[name], expected[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            problems.append(f"{name} is {tuple(a.shape)} {a.dtype}, must be {tuple(b.shape)} {b.dtype}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{origin} does not fit the model: it {'; it '.join(sorted(problems)[:5])}{more}.")


def _compare(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Raise ValueError unless the file holds these very bits: what the disk gives back is what was meant."""
    # Read, not mapped: safetensors 0.8 never frees 63 bytes of each tensor that it maps, 20 MB of 1,000 epochs.
    with safetensors.safe_open(str(path), framework="pt", backend="pread") as file:
        same = file.metadata() == metadata and {*file.keys()} == tensors.keys()  # noqa: SIM118, it is no dict
        same = same and all(_same_bits(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    if not same:
        raise ValueError(f"{path} reads back otherwise than it was written: the disk or the memory is at fault.")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]  # NaN equals no NaN
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(bits), b.view(bits))
