"""PATCH_DROP: a training step sees a part of each picture's patches, drawn anew for every step.

Free variety for a frozen encoder whose features are cached, and a shorter memory to attend to. What is left out are
rows of the encoder's output: a trained encoder still computes them.
"""

from collections.abc import Sequence

import torch

from nanocaption.base.settings import Settings
from nanocaption.data.dataset import Batch
from nanocaption.data.order import Group, seed_of


def drop_patches(batch: Batch, groups: Sequence[Group], settings: Settings, step: int, patches: int) -> Batch:
    """The batch with `kept`, the patches of each image that step `step` may see; as it is where PATCH_DROP is 0.

    groups: of the images of the batch, in their order. patches: of a picture. What is kept of an image is a function of
    (SEED, step, group) alone. At least one patch is kept.
    """
    kept = max(1, patches - round(settings.PATCH_DROP * patches))
    if kept == patches:
        return batch
    rows = []
    for group in groups:
        stream = torch.Generator().manual_seed(seed_of(settings.SEED, "patches", step, group))
        rows.append(torch.randperm(patches, generator=stream)[:kept].sort().values)
    return batch._replace(kept=torch.stack(rows))
