"""Questions about the built-in pictures, from scratch: colours, numbers, what is where, whether something is there.

    nanocaption train recipes/vqa_demo.py
    nanocaption ask data/demo/images/scene_02300.jpg "What colour is the house?"
"""

BASE_RECIPE = "demo.py"

QUESTIONS = True
CAPTIONS_PER_IMAGE = 12  # questions about a picture that share one pass of the encoder

NUM_EPOCHS = 10
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
LABEL_SMOOTHING = 0.0
EVAL_BATCH_SIZE = 300
