"""Flickr8k, frozen ViT-Tiny. Measured: 45 minutes on a CPU core; dev CIDEr 58.7, BLEU-4 22.3, ROUGE-L 48.1 (beam 3).

    python train.py recipes/flickr8k_vit_tiny.py --raw-data-dir FLICKR8K --encoder-model-name VIT_TINY

FLICKR8K: a folder with the pictures and the captions in any layout that prepare_dataset.py reads (Karpathy's
dataset_flickr8k.json, Kaggle's captions.txt, the original Flickr8k.token.txt with its split lists).
The encoder's features are kept on the disk, 3.2 GB in all. Scores: python evaluate.py --split val
VIT_TINY: a ViT-Tiny/16 pretrained on ImageNet, as a folder or a Hub id (e.g. WinKawaks/vit-tiny-patch16-224).

Further, to dev CIDEr 62.1 and BLEU-4 24.8: self-critical training, stopped after 3 of its 6 epochs (20 minutes on that
core), and a quarter of the way from A, the weights before, to B, those after (docs/training.md):

    python train.py recipes/flickr8k_vit_tiny.py ... --objective scst --init-checkpoint-path A --num-epochs 6
        --patch-drop 0.5 --ema-decay 0.99 --scst-lr-schedule cosine
    nanocaption average A B --weights 0.75,0.25 -o C
"""

DATASET = "flickr8k"
RAW_DATA_DIR = "raw/flickr8k"
ENCODER_MODEL_NAME = "WinKawaks/vit-tiny-patch16-224"
ENCODER_LAYERS = (6, 9, 12)
FREEZE_ENCODER = True
RANDOM_FLIP = True
FEATURE_VIEWS = 2

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
