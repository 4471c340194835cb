"""The optimizer's parameter groups, its state by parameter name, and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn

from nanocaption.train import sharding

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
        groups.setdefault((part, decays), []).append((name, sharding.own_part(parameter)))
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
    by_name = {names[i]: slots for i, slots in state["state"].items()}
    for group in groups:  # parameters that got no gradient yet have no state; told, so that none is lost unnoticed
        group["without_state"] = [name for name in group["param_names"] if name not in by_name]
    return {"state": by_name, "param_groups": groups}


def positional_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """What `state_by_name` gave, whole, for optimizer.load_state_dict; spread as the optimizer's parameters are.

    Raises ValueError, naming it, where a parameter, slot, shape or dtype is not what this optimizer has.
    """
    current = optimizer.state_dict()
    groups = current["param_groups"]
    saved_names = [list(group["param_names"]) for group in saved["param_groups"]]
    if saved_names != [list(group["param_names"]) for group in groups]:
        raise ValueError("The checkpoint's optimizer holds other parameters than this model trains.")
    position = {n: i for g in groups for i, n in zip(g["params"], g["param_names"], strict=True)}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    without = {name for group in saved["param_groups"] for name in group["without_state"]}
    lost = position.keys() - without - saved["state"].keys()
    if lost:
        raise ValueError(f"The checkpoint's optimizer has lost the state of {', '.join(sorted(lost)[:5])}.")
    for name, slots in saved["state"].items():
        if name not in position or set(slots) != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"The checkpoint's optimizer holds {', '.join(slots)} of {name}, which is not AdamW's.")
        parameter = sharding.layout(parameters[position[name]])
        for slot, tensor in slots.items():
            shape, dtype = ((), torch.float32) if slot == "step" else (parameter.shape, parameter.dtype)
            if tensor.shape != shape or tensor.dtype != dtype:
                raise ValueError(
                    f"The optimizer's {slot} of {name} is {tuple(tensor.shape)} {tensor.dtype}, must be "
                    f"{tuple(shape)} {dtype}."
                )
    merged = [
        {
            **{key: value for key, value in group.items() if key != "without_state"},
            "betas": tuple(group["betas"]),
            "params": now["params"],
        }
        for group, now in zip(saved["param_groups"], groups, strict=True)
    ]
    state = {
        position[name]: {
            slot: tensor if slot == "step" else sharding.own_part_like(tensor, parameters[position[name]])
            for slot, tensor in slots.items()
        }
        for name, slots in saved["state"].items()
    }
    return {"state": state, "param_groups": merged}
