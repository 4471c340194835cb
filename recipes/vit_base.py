"""A frozen ViT-B/16 and a decoder of 4 x 512: for Flickr30k, and for some thousand pictures of your own.

    python train.py recipes/vit_base.py --dataset flickr30k
    python train.py recipes/vit_base.py --dataset mine --raw-data-dir FOLDER

Meant for a GPU. Not run for this version: no time and no score to state yet. The encoder's features are kept on the
disk, 0.3 MB a picture: 9 GB for Flickr30k.
"""

ENCODER_MODEL_NAME = "google/vit-base-patch16-224-in21k"
FREEZE_ENCODER = True

VOCAB_SIZE = 8000

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
