"""The mean of the weights of several checkpoints: ends of one run's epochs, or runs that began at the same checkpoint.

Vaswani et al. 2017 average the last checkpoints of a run, Wortsman et al. 2022 (model soups) runs with one start. Runs
of different random starts have nothing in common that a mean would keep.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from nanocaption.base.settings import DATA_SETTINGS, ModelSettings
from nanocaption.base.tensors import State, check_fits
from nanocaption.base.version import VERSION
from nanocaption.data.tokenizer import tokenizer_digest, tokenizer_from_json
from nanocaption.model import exported
from nanocaption.model.encoder import nameless
from nanocaption.runs import checkpoint
from nanocaption.use.load import is_exported

# What a mean keeps of one of its members; nothing of the training's course belongs to it.
_KEPT = ("config", "config_constants", "tokenizer", "model_arguments", "captions_sha256", "encoding", "environment")
_FREE = {"ENCODER_MODEL_NAME", "FREEZE_ENCODER"}  # of ModelSettings: a place, and how it was trained


class Member(NamedTuple):
    name: str  # its folder and file, for people
    sha256: str  # of the file of its weights
    state: State  # without the training's part


def read_member(path: Path) -> Member:
    """A checkpoint, or the weights of an exported folder. ValueError with one line where damaged or not finite."""
    state = exported.read(path.parent) if is_exported(path) else checkpoint.load(path)
    state = cast(State, {name: value for name, value in state.items()
                         if name not in ("optimizer_state_dict", "raw_state_dict")})  # fmt: skip
    _check_finite(state["model_state_dict"], str(path))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = path.parent.name if is_exported(path) else f"{path.resolve().parent.name}/{path.name}"
    return Member(name, digest, state)


def mean(members: Sequence[Member], shares: Sequence[float]) -> State:
    """A checkpoint whose weights are sum(share * weights) / sum(shares) of the members, summed in float64.

    What is equal to the bit in all of them is kept as it is: a frozen encoder above all. Settings and epoch are those
    of the member that was trained furthest; "average_of" says what it was made of. It has no optimizer state, and
    cannot be resumed. Raises ValueError as `check_alike`, and where the result is not finite.
    """
    check_alike(members)
    furthest = max(members, key=lambda member: ("config_constants" in member.state, member.state["step"]))
    weights = {
        name: _mean_of([member.state["model_state_dict"][name] for member in members], shares)
        for name in members[0].state["model_state_dict"]
    }
    _check_finite(weights, "The mean")
    of = [
        {"name": member.name, "sha256": member.sha256, "step": member.state["step"], "epoch": member.state["epoch"],
         "weight": share / sum(shares)}
        for member, share in zip(members, shares, strict=True)
    ]  # fmt: skip
    known: dict[str, Any] = dict(furthest.state)
    rewarded = max(member.state.get("rewarded_steps", 0) for member in members)  # the mean has learnt from them, too
    return cast(State, {
        "config_constants": {}, **{name: known[name] for name in _KEPT if name in known},
        "epoch": known["epoch"], "step": known["step"], "average_of": of, "rewarded_steps": rewarded,
        "model_state_dict": weights, "optimizer_state_dict": {"state": {}, "param_groups": []}, "scaler_state_dict": {},
        "best_val_loss": None, "best_cider": None, "saved_at": time.time(), "written_by": f"nanoCaption {VERSION}",
    })  # fmt: skip


def check_alike(members: Sequence[Member]) -> None:
    """Raise ValueError, naming the first difference, unless the members are of one kind, and each another model."""
    first, *others = members
    for number, member in enumerate(others, start=1):
        for earlier in members[:number]:
            if _same_weights(earlier, member):
                raise ValueError(f"{earlier.name} and {member.name} hold the same weights: name each model once")
        if difference := _difference(first, member):
            raise ValueError(f"{member.name} is no model like {first.name}, their weights have no mean: {difference}")


def notes(members: Sequence[Member]) -> list[str]:
    """What makes a mean doubtful, as far as the checkpoints tell."""
    first, found = members[0], []
    for member in members[1:]:
        a, b = first.state["config"], member.state["config"]
        if a.get("SEED") != b.get("SEED") and not (a.get("INIT_CHECKPOINT_PATH") or b.get("INIT_CHECKPOINT_PATH")):
            found.append(f"WARNING: {first.name} and {member.name} began at different random weights (SEED "
                         f"{a.get('SEED')} and {b.get('SEED')}, no INIT_CHECKPOINT_PATH): their mean is hardly a model "
                         "of use; score it before you believe it")  # fmt: skip
        data = [f"{name} {a[name]!r} and {b[name]!r}" for name in DATA_SETTINGS if a.get(name) != b.get(name)]
        if data:
            found.append(f"Note: {first.name} and {member.name} were trained on other pictures ({'; '.join(data)}): "
                         "the mean has seen those of both")  # fmt: skip
    return found


def _difference(first: Member, other: Member) -> str | None:
    """What keeps two models from having a mean, the first thing found; None where nothing does."""
    a, b = first.state, other.state
    tokenizers = [tokenizer_digest(tokenizer_from_json(state["tokenizer"])) for state in (a, b)]
    if tokenizers[0] != tokenizers[1]:
        return "another tokenizer"
    sizes, its = (vars(ModelSettings.of(state["config"])) for state in (a, b))
    for name, value in sizes.items():
        if name not in _FREE and its[name] != value:
            return f"{name} is {value!r} and {its[name]!r}"
    parts: dict[str, Callable[[State], object]] = {
        "make of the decoder": _make,
        "encoder": lambda state: nameless(state["model_arguments"].get("encoder_config")),
        "preparation of pictures": exported.image_spec_of,
    }
    for what, get in parts.items():
        if get(a) != get(b):
            return f"another {what}"
    return _other_weights(a, b, other.name)


def _other_weights(a: State, b: State, name_of_b: str) -> str | None:
    """What keeps their tensors from having a mean."""
    try:
        check_fits(a["model_state_dict"], b["model_state_dict"], name_of_b)
    except ValueError as error:
        return str(error)
    frozen = a["config"]["FREEZE_ENCODER"] and b["config"]["FREEZE_ENCODER"]
    for name, tensor in a["model_state_dict"].items():
        kept = not tensor.is_floating_point() or (frozen and name.startswith("encoder."))
        if kept and not torch.equal(tensor, b["model_state_dict"][name]):
            return f"another frozen encoder, in {name}" if frozen else f"{name} holds no fractions and differs"
    return None


def _make(state: State) -> dict[str, object]:
    """What a model that came from elsewhere does otherwise than ours."""
    return {k: v for k, v in state["model_arguments"].items() if k not in ("encoder_config", "image_spec")}


def _same_weights(first: Member, other: Member) -> bool:
    a, b = first.state["model_state_dict"], other.state["model_state_dict"]
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def _mean_of(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
        return tensors[0]
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total += share * tensor.double()
    return (total / math.fsum(shares)).to(tensors[0].dtype)


def _check_finite(weights: dict[str, Tensor], origin: str) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{origin} holds values that are not finite, in {name}.")
