"""Flickr30k with a frozen ViT-B/16 (ImageNet-21k) and a decoder of 4 x 512.

    python train.py recipes/flickr30k_vit_b16.py

The first start downloads 4.4 GB of pictures and 0.35 GB of weights; the features take 9.1 GB of disk (0.3 MB a
picture).
Not run yet. Estimates: one GPU of 12 GB, 4 CPU cores; 10 to 30 minutes, some of it for reading the pictures once.
Score: a guess, CIDEr 45 to 60 on the test split (beam 3).
"""

DATASET = "flickr30k"
ENCODER_MODEL_NAME = "google/vit-base-patch16-224-in21k"
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
