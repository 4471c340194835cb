"""A folder of your own pictures and captions, some hundred to some ten thousand, with a frozen CLIP ViT-B/32.

    python train.py recipes/own_folder.py --raw-data-dir FOLDER

FOLDER: the pictures and a captions.csv with the columns file_name,caption, or any other layout that prepare_dataset.py
reads. It is read, never changed. The weights are a download of 0.6 GB, the features take 77 kB of disk a picture.
Not run yet. Estimates for 5,000 pictures with 5 captions each: minutes on a GPU, half an hour to an hour on a CPU of 4
cores, a third of it for the features. Score: depends on how alike the captions are; evaluate.py prints what they score
against each other, and a first run may expect half to three quarters of that. It stops by itself when the validation
loss has not fallen three times in a row.
Few pictures (the start warns below 1,000): begin with a captioner that this recipe made of more pictures,
    python train.py recipes/own_folder.py --raw-data-dir FOLDER --init-checkpoint-path CHECKPOINT --learning-rate 2e-4
Or with one of another recipe; settings of the model that differ are named. Measured on 200 photographs: see LOG.md.
"""

DATASET = "mine"
RAW_DATA_DIR = "my_pictures"

ENCODER_MODEL_NAME = "openai/clip-vit-base-patch32"
FREEZE_ENCODER = True

VOCAB_SIZE = 4000
MAX_SEQ_LEN = 40

DECODER_EMBED_DIM = 256
DECODER_HEADS = 4
DECODER_LAYERS = 3
DECODER_FF_DIM = 1024
DECODER_DROPOUT = 0.2

NUM_EPOCHS = "auto"  # by the number of pictures, as the next; the start prints both
BATCH_SIZE = "auto"
LEARNING_RATE = 1e-3
WARMUP_RATIO = 0.05
EARLY_STOPPING_PATIENCE = 3
NUM_WORKERS = 2
