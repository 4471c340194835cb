"""How much training a set of its size can use: NUM_EPOCHS = "auto", and what is told where it is too small."""

from nanocaption.base import devices
from nanocaption.base.settings import Settings

STEPS = 3000  # of a whole run: a small set shows its pictures more often
FEWEST_EPOCHS, MOST_EPOCHS = 8, 20
# Training pictures below which captions say little of the picture. Rough: measured were 180 and 5,900 (LOG.md).
FROM_SCRATCH, PRETRAINED = 5000, 1000
TO_JUDGE = 20  # validation pictures


def choose_epochs(steps_per_epoch: int) -> int:
    """As many epochs as make about STEPS steps, within the two bounds; printed."""
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(STEPS / steps_per_epoch)))
    devices.console(
        f"NUM_EPOCHS = 'auto': {epochs} epochs of {steps_per_epoch} steps, as many as make {STEPS:,} steps, from "
        f"{FEWEST_EPOCHS} to {MOST_EPOCHS}"
    )
    return epochs


def warnings(settings: Settings, train: int, val: int) -> list[str]:
    """What to tell of a run that starts with so many pictures for training and for validation."""
    notes = []
    scratch = settings.ENCODER_MODEL_NAME is None
    enough = FROM_SCRATCH if scratch else PRETRAINED
    if settings.INIT_CHECKPOINT_PATH is None and train < enough and settings.DATASET != "demo":
        notes.append(
            f"WARNING: {train:,} training pictures are too few {'from scratch' if scratch else 'for a new decoder'}: "
            f"below about {enough:,} photographs captions are fluent and mostly wrong. What works: start from a "
            "captioner that was trained on more, --init-checkpoint-path ITS_CHECKPOINT with the settings of its model, "
            "and a lower --learning-rate, e.g. 2e-4."
        )
    if val < TO_JUDGE:
        notes.append(
            f"WARNING: {val:,} validation pictures cannot tell a better checkpoint from a worse one: give "
            f"{TO_JUDGE} or more."
        )
    return notes
