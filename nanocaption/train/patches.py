"""PATCH_DROP: a training step sees a part of each picture's patches, drawn anew for every step.

Free variety, and less to compute: of a frozen encoder, whose features may be cached, rows of its output are left out,
and the decoder has a shorter memory to attend to; one that trains leaves the patches out before its first block, which
halves its work at 0.5 (Li et al. 2023, "Scaling language-image pre-training via masking").
"""

from collections.abc import Sequence

import torch

from nanocaption.base.settings import Settings
from nanocaption.data.dataset import Batch
from nanocaption.data.order import Group, seed_of


def drop_patches(
    batch: Batch, groups: Sequence[Group], settings: Settings, epoch: int, step: int, patches: int
) -> Batch:
    """The batch with `kept`, the patches of each image that step `step` may see; as it is where none are left out.

    groups: of the images of the batch, in their order. epoch: counted from 0. patches: of a picture. What is kept of an
    image is a function of (SEED, step, group) alone. At least one patch is kept.
    """
    kept = max(1, patches - round(settings.PATCH_DROP * patches))
    if kept == patches or epoch >= settings.NUM_EPOCHS - settings.PATCH_DROP_WHOLE_EPOCHS:
        return batch
    rows = []
    for group in groups:
        stream = torch.Generator().manual_seed(seed_of(settings.SEED, "patches", step, group))
        rows.append(torch.randperm(patches, generator=stream)[:kept].sort().values)
    return batch._replace(kept=torch.stack(rows))
