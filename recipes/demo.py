"""The built-in pictures, from scratch: what `python train.py` does without any recipe, with its settings spelt out.

    python train.py recipes/demo.py

Hardware: 2 CPU cores, no download. Time, measured: 4 minutes. Score, measured: test CIDEr 388, BLEU-4 95 (beam 3) on
200 drawn pictures, where the references score CIDEr 178 against each other; 99 % of the named things are true.
"""

DATASET = "demo"
ENCODER_MODEL_NAME = None

VOCAB_SIZE = 1000
MAX_SEQ_LEN = 40

VIT_PATCH_SIZE = 8
VIT_STEM = "conv"
VIT_EMBED_DIM = 128
VIT_LAYERS = 2
VIT_HEADS = 4
DECODER_EMBED_DIM = 128
DECODER_HEADS = 4
DECODER_LAYERS = 2
DECODER_FF_DIM = 512

NUM_EPOCHS = 12
BATCH_SIZE = 80
LEARNING_RATE = 1e-3
WARMUP_STEPS = 100
