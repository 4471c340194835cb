"""Flickr30k with a frozen CLIP ViT-B/32 and a decoder of 4 x 512: the lightest of the three.

    python train.py recipes/flickr30k_clip_b32.py

The first start downloads 4.4 GB of pictures and 0.6 GB of weights; the features take 2.3 GB of disk (77 kB a picture).
Not run yet. Estimates: one GPU of 8 GB, 4 CPU cores; 5 to 20 minutes, most of it for reading the pictures once. Score:
a guess, CIDEr 50 to 62 on the test split (beam 3).
"""

BASE_RECIPE = "flickr30k_vit_b16.py"  # its settings, but for these

ENCODER_MODEL_NAME = "openai/clip-vit-base-patch32"
