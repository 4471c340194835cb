"""Questions about the built-in pictures, from scratch: colours, numbers, what is where, whether something is there.

    python train.py recipes/vqa_demo.py
    nanocaption ask data/demo/images/scene_02300.jpg "What colour is the house?"

Hardware: 2 CPU cores, no download. Not run yet to its end. Estimates: 5-8 minutes, from the time of its first epochs.
Score: depends on that run; from a demo captioner's weights three epochs of questions reach 93 % (LOG.md).
"""

BASE_RECIPE = "demo.py"

QUESTIONS = True
CAPTION_QUESTION = "Describe the picture."  # captions are learnt beside, as answers to this
CAPTIONS_PER_IMAGE = 16  # questions about a picture that share one pass of the encoder

NUM_EPOCHS = 12
BATCH_SIZE = 96
LEARNING_RATE = 1e-3
LABEL_SMOOTHING = 0.0
EVAL_BATCH_SIZE = 300
