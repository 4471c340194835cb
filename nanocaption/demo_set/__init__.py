"""The built-in demo set: drawn scenes, five captions for each, and a check of captions against scenes."""

from nanocaption.demo_set.build import draw_demo_set
from nanocaption.demo_set.captions import describe_scene
from nanocaption.demo_set.confusions import caption_confusions, total_confusions, total_truth
from nanocaption.demo_set.drawing import draw_scene
from nanocaption.demo_set.scenes import sample_scene
from nanocaption.demo_set.truth import TRUTH_KINDS, caption_truth

__all__ = [
    "TRUTH_KINDS",
    "caption_confusions",
    "caption_truth",
    "describe_scene",
    "draw_demo_set",
    "draw_scene",
    "sample_scene",
    "total_confusions",
    "total_truth",
]
