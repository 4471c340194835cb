"""COCO captions, Karpathy's split, with a frozen CLIP ViT-B/32 and a decoder of 6 x 512.

    python train.py recipes/coco.py --raw-data-dir COCO

COCO: a folder with Karpathy's dataset_coco.json and, in it or below, the pictures of train2014 and val2014 (19 GB, from
cocodataset.org; nothing is downloaded here but the 0.6 GB of weights). Trained on train and restval, 113,287 pictures;
their features and those of val take 9.1 GB of disk (77 kB a picture).
Not run yet. Estimates: one GPU of 16 GB, 8 CPU cores; 45 to 90 minutes. Score: a guess, CIDEr 98 to 112 on the test
split (beam 3), by cross-entropy alone.
"""

BASE_RECIPE = "flickr30k_vit_b16.py"  # its settings, but for these

DATASET = "coco"
RAW_DATA_DIR = "raw/coco"
TRAIN_SPLITS = ("train", "restval")

ENCODER_MODEL_NAME = "openai/clip-vit-base-patch32"
VOCAB_SIZE = 10000
DECODER_LAYERS = 6

BATCH_SIZE = 640
NUM_WORKERS = 8
