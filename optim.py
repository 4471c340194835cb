"""The optimizer's parameter groups, its state by parameter name, and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn

# Learned tables and tokens that pretrained towers keep as bare parameters.
_NO_DECAY = ("position", "cls_token", "class_embedding", "mask_token", "register_tokens", "distillation_token")


def build_optimizer(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], eps: float, fused: bool
) -> torch.optim.AdamW:
    """AdamW over the parameters of `model` that train.

    Up to four groups: encoder or not, decayed or not. Weight matrices and convolution kernels decay; biases, norms and
    embeddings (token, position) do not. Each group has the keys "part" ("encoder" or "decoder") for its learning rate.
    Raises ValueError where nothing trains.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "encoder" if name.startswith("encoder.") else "decoder"
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings and not any(w in name for w in _NO_DECAY)
        groups.setdefault((part, decays), []).append((name, parameter))
    if not groups:
        raise ValueError("No parameter of the model trains.")
    return torch.optim.AdamW(
        [
            {"params": members, "part": part, "weight_decay": weight_decay if decays else 0.0}
            for (part, decays), members in sorted(groups.items())
        ],
        lr=0.0,  # set before every step
        betas=betas,
        eps=eps,
        fused=fused,
    )


def learning_rate(
    step: int,
    *,
    peak: float,
    schedule: str,
    warmup_steps: int,
    total_steps: int,
    steps_per_epoch: int,
    warmup_lr: float,
    min_lr: float,
    decay_rate: float,
) -> float:
    """The learning rate of optimizer step `step`, counted from 0. A pure function: a resume has nothing to restore.

    Linear from `warmup_lr` at step 0 to `peak` at step `warmup_steps`; then "constant", "linear" or
    "cosine" down to `min_lr` at `total_steps`, or "step": times `decay_rate` after every epoch, not below `min_lr`.
    """
    if step < warmup_steps:
        return warmup_lr + (peak - warmup_lr) * step / warmup_steps
    if schedule == "constant":
        return peak
    if schedule == "step":
        return max(min_lr, peak * decay_rate ** (step // steps_per_epoch))
    share = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))  # of the way down
    if schedule == "linear":
        return peak + (min_lr - peak) * share
    if schedule == "cosine":
        return min_lr + (peak - min_lr) * (1 + math.cos(math.pi * share)) / 2
    raise ValueError(f"LR_SCHEDULE = {schedule!r}: must be constant, linear, cosine or step.")


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state as {"state": {parameter name: {slot: tensor}}, "param_groups": [settings, JSON-ready]}.

    Torch's own state is by position, where two swapped parameters of one shape would go unnoticed.
    """
    state = optimizer.state_dict()
    names = {i: n for g in state["param_groups"] for i, n in zip(g["params"], g["param_names"], strict=True)}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]]
    return {"state": {names[i]: slots for i, slots in state["state"].items()}, "param_groups": groups}


def load_state_by_name(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore what `state_by_name` gave. Raises ValueError, before anything changes, where names or shapes differ."""
    current = optimizer.state_dict()
    shapes = {}
    for group, group_state in zip(optimizer.param_groups, current["param_groups"], strict=True):
        for name, parameter in zip(group_state["param_names"], group["params"], strict=True):
            shapes[name] = parameter.shape
    saved_names = [list(g["param_names"]) for g in saved["param_groups"]]
    if saved_names != [list(g["param_names"]) for g in current["param_groups"]]:
        raise ValueError("The checkpoint's optimizer holds other parameters than this model trains.")
    for name, slots in saved["state"].items():
        for slot, tensor in slots.items():
            if name not in shapes or (tensor.ndim and tensor.shape != shapes[name]):
                raise ValueError(f"The optimizer's {slot} of {name} has the shape {tuple(tensor.shape)}, does not fit.")
    position = {n: i for g in current["param_groups"] for i, n in zip(g["params"], g["param_names"], strict=True)}
    groups = [
        {**group, "betas": tuple(group["betas"]), "params": now["params"]}
        for group, now in zip(saved["param_groups"], current["param_groups"], strict=True)
    ]
    optimizer.load_state_dict(
        {"state": {position[name]: slots for name, slots in saved["state"].items()}, "param_groups": groups}
    )
