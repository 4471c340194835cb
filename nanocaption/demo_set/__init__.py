"""The built-in demo set: drawn scenes, captions and questions for each, and a check of captions against scenes."""

from nanocaption.demo_set.build import draw_demo_set
from nanocaption.demo_set.captions import describe_scene
from nanocaption.demo_set.drawing import draw_scene
from nanocaption.demo_set.questions import Asked, ask_scene
from nanocaption.demo_set.scenes import sample_scene
from nanocaption.demo_set.truth import TRUTH_KINDS, caption_confusions, caption_truth, total_confusions, total_truth
