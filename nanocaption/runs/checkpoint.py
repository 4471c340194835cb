"""One self-verifying .safetensors file per checkpoint. No pickle, in or out.

Layout: tensors under `model/<parameter>` and `optim/<parameter>/<slot>`, and where the model is a moving average
(EMA_DECAY) the weights that its training goes on with under `raw/<parameter>`; `data/used` is the note of its pictures
(train/used.py); everything else (position, settings, tokenizer, ...) is canonical JSON under ONE metadata key, because
safetensors writes several keys in random order.
safetensors has no checksum, so a sha256 over the sha256s of all tensors and the JSON is stored with them and checked
on every load. Older files also hold random generators under `rng/`, which nothing needs any more.

Parameters of a pretrained tower have the names of transformers' own files (tower_names.py), whatever that library calls
them in memory: such files are of version 3. Those from scratch are of version 2, which earlier programs read as well.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nanocaption.base import tower_names
from nanocaption.base.files import beside, sync_to_disk
from nanocaption.base.tensors import (
    OptimizerState,
    State,
    hashes_of,
    is_member,
    read_hashed,
    slots_by_name,
    without_duplicates,
    write_tensors,
)
from nanocaption.base.version import VERSION

# 1 had one running sha256 over all bytes, which takes a single core; 2 the names that a tower's weights had in memory.
FORMAT_VERSION = 3
WITHOUT_TOWER = 2
READ = (1, 2, 3)
_KEY = "nanocaption"
_MAX_HEADER = 2**25  # bytes of JSON; a tokenizer of 50,000 tokens takes 3 million
_REQUIRED = {  # key -> type
    "epoch": int, "step": int, "model_state_dict": dict, "optimizer_state_dict": dict, "config": dict,
    "config_constants": dict, "tokenizer": str,
}  # fmt: skip
_COUNTS = (
    "epoch", "step", "step_in_epoch", "validations_without_gain", "nonfinite_in_a_row", "rewarded_steps",
    "averaged_steps",
)  # fmt: skip


class OtherFormat(ValueError):
    """The file is sound as far as can be told, but of another version of the format."""


def save(path: Path | str, state: State) -> None:
    """Write `state` to `path`; the file appears complete and verified, or not at all.

    state: "model_state_dict" {name: tensor}, "optimizer_state_dict" {"state": {name: {slot: tensor}}, "param_groups"},
        perhaps "raw_state_dict" {name: tensor} and "used", a tensor;
        every other key must be JSON-ready.
    Raises ValueError for a state that JSON cannot hold, OSError where the disk refuses.
    """
    path = Path(path)
    _check_values(path, state)
    tensors, values = _pack(state)
    tower = any(tower_names.is_of_tower(name) for name in state["model_state_dict"])
    head = {"format_version": FORMAT_VERSION if tower else WITHOUT_TOWER,
            "digest": _digest(tensors, _canonical(values))}  # fmt: skip
    text = _canonical(head | values)
    # A folder of its own: the writer makes a file of an unknown name beside its target, which a kill would leave.
    with beside(path) as folder:
        folder.mkdir()
        write_tensors(folder / path.name, tensors, {_KEY: text})
        os.replace(folder / path.name, path)
    sync_to_disk(path.parent)


def load(path: Path | str) -> State:
    """The state `save` was given, verified; tensors on the CPU, independent of the file afterwards.

    Raises ValueError with one line that names the file and the defect; nothing is ever unpickled.
    """
    path = Path(path)
    header = read_header(path)
    try:
        tensors, hashes = read_hashed(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    digest = header.pop("digest")
    first = header.pop("format_version") == 1
    text = _canonical(header)
    if (_running_digest(tensors, text) if first else _digest(tensors, text, hashes)) != digest:
        raise ValueError(f"{path} is damaged: its content does not match its digest. Use another checkpoint.")
    state = _unpack(path, tensors, header)
    _check_values(path, state)
    return state


def read_header(path: Path | str) -> dict[str, object]:
    """The JSON part of a checkpoint (epoch, config, ...), without reading its tensors. Raises ValueError as load()."""
    path = Path(path)
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"There is no checkpoint {path}"
        raise ValueError(f"{what}: name a .safetensors file of a run.")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if length > size - 8:
                raise ValueError("it ends within its header")
            if length > _MAX_HEADER:
                raise ValueError(f"its header claims {length:,} bytes, above the limit of {_MAX_HEADER:,}")
            entries = json.loads(file.read(length), object_pairs_hook=without_duplicates)
            if not isinstance(entries, dict):
                raise ValueError("its header is no list of tensors")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable .safetensors file: {error}") from error
    metadata = entries.get("__metadata__")
    if not isinstance(metadata, dict) or _KEY not in metadata:
        raise ValueError(f"{path} is a .safetensors file, but not a nanoCaption checkpoint.")
    try:
        header = json.loads(metadata[_KEY], object_pairs_hook=without_duplicates)
        version = header["format_version"]
        header["digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its description cannot be read ({error}).") from error
    if type(version) is not int or version not in READ:
        writer = str(header.get("written_by", "another program"))[:60]
        raise OtherFormat(
            f"{path} was written by {writer} in format version {str(version)[:20]}; this program, nanoCaption "
            f"{VERSION}, reads versions {READ[0]} to {READ[-1]}. Use the version of nanoCaption that wrote it, or a "
            "newer one."
        )
    return header


def size_in_bytes(state: State) -> int:
    """About how large the file of `state` is."""
    tensors, _ = _pack(state)
    return sum(tensor.nbytes for tensor in tensors.values())


def check_finite(state: State, origin: str) -> None:
    """Raise ValueError, naming the tensor, where weights or optimizer state hold NaN or infinity."""
    raw = {f"the raw {name}": tensor for name, tensor in state.get("raw_state_dict", {}).items()}
    for name, tensor in (state["model_state_dict"] | raw | slots_by_name(state["optimizer_state_dict"])).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{origin} holds values that are not finite, in {name}.")


def _check_values(path: Path, state: Mapping[str, Any]) -> None:
    missing = [key for key in _REQUIRED if key not in state]
    if missing:
        raise ValueError(f"{path} is not a whole checkpoint: it lacks {', '.join(missing)}.")
    for key, kind in _REQUIRED.items():
        if type(state[key]) is not kind:
            found = type(state[key]).__name__
            raise ValueError(f"{path} is not a whole checkpoint: its {key} is a {found}, not a {kind.__name__}.")
    for key in _COUNTS:
        value = state.get(key, 0)
        if type(value) is not int or not 0 <= value < 2**53:
            raise ValueError(f"{path} is not a whole checkpoint: its {key} is {value!r:.60}, which is not a count.")
    if not isinstance(state.get("model_arguments", {}), dict):
        raise ValueError(f"{path} is not a whole checkpoint: its model_arguments are no names and values.")
    members = state.get("average_of", [])
    if not isinstance(members, list) or not all(map(is_member, members)):
        raise ValueError(f"{path} is not a whole checkpoint: its average_of is no list of checkpoints.")


def _pack(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """state -> (tensors by flat name, the rest as JSON-ready values)."""
    values: dict[str, Any] = dict(state)
    filed = tower_names.as_filed
    tensors = {f"model/{name}": tensor for name, tensor in filed(values.pop("model_state_dict")).items()}
    tensors |= {f"raw/{name}": tensor for name, tensor in filed(values.pop("raw_state_dict", {})).items()}
    if "used" in values:
        tensors["data/used"] = values.pop("used")
    optimizer = _filed_optimizer(values.pop("optimizer_state_dict"))
    for name, slots in optimizer["state"].items():
        tensors |= {f"optim/{name}/{slot}": tensor for slot, tensor in slots.items()}
    values["optimizer_param_groups"] = optimizer["param_groups"]
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, values


def _unpack(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> State:
    model: dict[str, Tensor] = {}
    raw: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        room, _, name = key.partition("/")
        if room == "model":
            model[name] = tensor
        elif room == "raw":
            raw[name] = tensor
        elif room == "optim":
            parameter, _, slot = name.rpartition("/")
            optimizer.setdefault(parameter, {})[slot] = tensor
        elif key == "data/used":
            values["used"] = tensor
        elif room != "rng":
            raise ValueError(f"{path} is damaged: it holds the unknown tensor {key!r}.")
    groups = values.pop("optimizer_param_groups", [])
    try:
        parts = {
            "model_state_dict": tower_names.as_filed(model),
            "optimizer_state_dict": _filed_optimizer({"state": optimizer, "param_groups": groups}),
            **({"raw_state_dict": tower_names.as_filed(raw)} if raw else {}),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return cast(State, {**values, **parts})


def _filed_optimizer(optimizer: OptimizerState) -> OptimizerState:
    """With the names that files have."""
    slots = sorted({slot for its in optimizer["state"].values() for slot in its})
    state: dict[str, dict[str, Tensor]] = {name: {} for name in tower_names.file_names(optimizer["state"])}
    for slot in slots:
        held = {name: its[slot] for name, its in optimizer["state"].items() if slot in its}
        for name, tensor in tower_names.as_filed(held).items():
            state[name][slot] = tensor
    groups = [
        group | {key: tower_names.file_names(group[key]) for key in ("param_names", "without_state") if key in group}
        for group in optimizer["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _canonical(values: dict[str, Any]) -> str:
    try:
        text = json.dumps(values, allow_nan=False)
        # Through JSON once: it makes keys text (id2label of an encoder has numbers), which sorts in another order.
        return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"A checkpoint holds tensors and JSON only: {error}.") from error


def _digest(tensors: dict[str, Tensor], text: str, hashes: Mapping[str, str] | None = None) -> str:
    """hashes: of the tensors' bytes, where they are known."""
    hashes = hashes or hashes_of(tensors)
    lines = [f"{name}|{tensors[name].dtype}|{tuple(tensors[name].shape)}|{hashes[name]}\n" for name in sorted(tensors)]
    return hashlib.sha256("".join([*lines, text]).encode()).hexdigest()


def _running_digest(tensors: dict[str, Tensor], text: str) -> str:
    """That of version 1."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
