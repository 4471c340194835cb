"""Flickr30k with a frozen CLIP ViT-L/14 and a decoder of 4 x 512: the strongest of the three.

    python train.py recipes/flickr30k_clip_l14.py

The first start downloads 4.4 GB of pictures and 1.7 GB of weights; the features take 15.8 GB of disk (0.5 MB a
picture).
Not run yet. Estimates: one GPU of 24 GB or more, which holds the features as well, 4 CPU cores; 15 to 40 minutes.
Score: a guess, CIDEr 58 to 72 on the test split (beam 3).
"""

BASE_RECIPE = "flickr30k_vit_b16.py"  # its settings, but for these

ENCODER_MODEL_NAME = "openai/clip-vit-large-patch14"
DECODER_DROPOUT = 0.2
LEARNING_RATE = 4e-4
