"""Flickr8k, frozen ViT-Tiny. Measured: 22 minutes on two CPU cores; dev CIDEr 53.1, BLEU-4 21.1, ROUGE-L 46.6 (beam 3).

    python train.py recipes/flickr8k_vit_tiny.py --raw-data-dir FLICKR8K --encoder-model-name VIT_TINY

FLICKR8K: a folder with the pictures and the captions in any layout that prepare_dataset.py reads (Karpathy's
dataset_flickr8k.json, Kaggle's captions.txt, the original Flickr8k.token.txt with its split lists).
The encoder's features are kept on the disk, 0.5 GB in all. Scores: python evaluate.py --split val
VIT_TINY: a ViT-Tiny/16 pretrained on ImageNet, as a folder or a Hub id (e.g. WinKawaks/vit-tiny-patch16-224).
"""

DATASET = "flickr8k"
RAW_DATA_DIR = "raw/flickr8k"
ENCODER_MODEL_NAME = "WinKawaks/vit-tiny-patch16-224"
FREEZE_ENCODER = True

VOCAB_SIZE = 4000
MAX_SEQ_LEN = 32

DECODER_EMBED_DIM = 256
DECODER_HEADS = 4
DECODER_LAYERS = 3
DECODER_FF_DIM = 1024
DECODER_DROPOUT = 0.1

NUM_EPOCHS = 8
BATCH_SIZE = 160
LEARNING_RATE = 1e-3
WARMUP_RATIO = 0.05
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
NUM_WORKERS = 0
