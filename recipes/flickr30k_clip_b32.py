"""Flickr30k with a frozen CLIP ViT-B/32 and a decoder of 4 x 512: the lightest of the three.

    python train.py recipes/flickr30k_clip_b32.py

The first start downloads 4.4 GB of pictures and 0.6 GB of weights; the features take 2.3 GB of disk (77 kB a picture).
Not run yet. Estimates: one GPU of 8 GB, 4 CPU cores; 5 to 20 minutes, most of it for reading the pictures once. Score:
a guess, CIDEr 50 to 62 on the test split (beam 3).
"""

DATASET = "flickr30k"
ENCODER_MODEL_NAME = "openai/clip-vit-base-patch32"
FREEZE_ENCODER = True

VOCAB_SIZE = 8000
MAX_SEQ_LEN = 40

DECODER_EMBED_DIM = 512
DECODER_HEADS = 8
DECODER_LAYERS = 4
DECODER_FF_DIM = 2048
DECODER_DROPOUT = 0.1

NUM_EPOCHS = 15
BATCH_SIZE = 320
LEARNING_RATE = 5e-4
WARMUP_RATIO = 0.05
NUM_WORKERS = 4
