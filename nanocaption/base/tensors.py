"""A .safetensors file that is on the disk and verified, and whether tensors fit a model."""

import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A .safetensors file of contiguous tensors on the CPU, on the disk and compared with them bit by bit.

    Raises OSError where the disk refuses, ValueError where it gives back something else.
    """
    try:
        path.touch()
        mode = path.stat().st_mode  # safetensors makes the file private to its owner, whatever the umask says
        safetensors.torch.save_file(tensors, path, metadata=metadata)
        path.chmod(mode)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        _compare(path, tensors, metadata)
    except safetensors.SafetensorError as error:  # how its writer tells of a full disk
        raise OSError(str(error)) from error


def check_fits(model: torch.nn.Module, saved: dict[str, Tensor], origin: str) -> None:
    """Raise ValueError, listing the differences, unless names, shapes and dtypes of `saved` are those of the model."""
    expected = model.state_dict()
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
    written = safetensors.torch.load_file(path)  # mapped: nobody else knows this file
    with safetensors.safe_open(str(path), framework="pt") as file:
        same = file.metadata() == metadata and written.keys() == tensors.keys()
    if not same or not all(_same_bits(written[name], tensor) for name, tensor in tensors.items()):
        raise ValueError(f"{path} reads back otherwise than it was written: the disk or the memory is at fault.")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]  # NaN equals no NaN
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(bits), b.view(bits))


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk: without this a power loss can undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
