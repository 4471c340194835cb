"""Every setting of nanoCaption. Edit the values here, then run `python train.py`.

Three ways to change a setting, each stronger than the one before:
    1. edit the constant in this file, or in a config.py of your own in the folder that you start from
    2. name a recipe:      python train.py recipes/flickr8k_vit_tiny.py
    3. give a flag:        python train.py --batch-size 64 --no-freeze-encoder --resume-checkpoint-path last
The value `none` on the command line stands for None. `python train.py --help` lists all settings.
"""

from typing import Literal

# --- Data ---
DATASET: str = "demo"  # "demo" (drawn), "flickr30k" (downloaded), your own; or a mix, e.g. "flickr30k,mine*2"
DATA_DIR: str = "data"  # prepared sets are kept in DATA_DIR/DATASET
RAW_DATA_DIR: str | None = None  # folder or archive with your pictures and captions; read, never changed
STREAM: bool = False  # RAW_DATA_DIR names WebDataset tars or parquet ('shards/{000..331}.tar'): pictures stay in them
HF_DATASET_ID: str = "nlphuji/flickr30k"  # where "flickr30k" comes from; as parquet: AnyModal/flickr30k
HF_DATASET_REVISION: str = "main"  # branch, tag or commit of HF_DATASET_ID
DATA_CUTOFF: int | None = None  # take only the first N images of each split (quick trials); None = all
TRAIN_SPLITS: tuple[str, ...] = ("train",)  # splits of the set to train on; of COCO as Karpathy cut it: train,restval
VAL_SPLITS: tuple[str, ...] = ("val",)  # to validate on after each epoch; choosing a checkpoint goes by these
TEST_SPLITS: tuple[str, ...] = ("test",)  # evaluate.py's --split test
DATA_SEED: int = 1  # fixes the drawn demo set, and the splits of a set that comes without its own
MAX_BAD_FRACTION: float = 0.01  # largest share of pictures, or captions, that may be unusable and are left out
QUESTIONS: bool = False  # learn to answer the set's questions, not to caption its pictures: docs/questions.md
CAPTION_QUESTION: str | None = None  # with QUESTIONS: learn captions too, as answers to it: "Describe the picture."
CAPTION_CASE: Literal["keep", "lower"] = "keep"  # of captions trained on; the other rules: data/caption_text.py
NUM_WORKERS: int = 0  # processes that read images; 0 reads in the training process, and checks new data on every core
RANDOM_CROP_AREA: float = 1.0  # training pictures are cropped at random to this share of their area or more; 1 = never
RANDOM_FLIP: bool = False  # mirror half of the training pictures; but those whose captions say left or right
FEATURE_VIEWS: int = 0  # frozen encoder: keep the features of so many RANDOM_* views of a picture; 0 = encode anew
CACHE_FEATURES: bool = True  # a frozen encoder runs once per image, its output is kept in DATA_DIR/DATASET/cache
CACHE_IMAGES: bool = True  # otherwise each picture is decoded and resized once, and kept there
CACHE_DIR: str | None = None  # caches and tokenizers of all sets; None = beside each set, in DATA_DIR/DATASET
CACHE_LIMIT_GB: float = 50.0  # largest file of either cache; above it the work is done anew every epoch

# --- Text ---
VOCAB_SIZE: int = 1000  # byte-level BPE trained on the training captions; 256 bytes and 4 special tokens included
MAX_SEQ_LEN: int = 40  # longest caption in tokens, <start> and <end> included; longer ones are cut, and told
PAD_TOKEN_ID: int = 0  # fills up the shorter captions of a batch; these four are fixed, the tokenizer's own
START_TOKEN_ID: int = 1  # the first token of every caption
END_TOKEN_ID: int = 2  # the last token of every caption
UNK_TOKEN_ID: int = 3  # never occurs: every byte has a token

# --- Encoder ---
ENCODER_MODEL_NAME: str | None = None  # Hub id or folder of a ViT, CLIP, SigLIP, DINOv2 or DeiT; None = from scratch
ENCODER_LAYERS: tuple[int, ...] | None = None  # blocks whose outputs, side by side, are seen, (6, 9, 12); None = last
FREEZE_ENCODER: bool = False  # keep a pretrained encoder as it is
IMAGE_SIZE: int | None = None  # side in pixels of the encoder's input; None = a pretrained encoder's own, else 64
VIT_PATCH_SIZE: int = 8  # from scratch: one token per patch of this side, pixels
VIT_STEM: Literal["conv", "patch"] = "conv"  # from scratch: small convolutions (learns faster) or one linear patch map
VIT_EMBED_DIM: int = 128  # from scratch: width
VIT_LAYERS: int = 2  # from scratch: depth
VIT_HEADS: int = 4  # from scratch: attention heads

# --- Decoder ---
DECODER_EMBED_DIM: int = 128  # width
DECODER_HEADS: int = 4  # attention heads
DECODER_LAYERS: int = 2  # depth
DECODER_FF_DIM: int = 512  # width of the feed-forward layers
DECODER_DROPOUT: float = 0.0  # on embeddings, attention outputs and feed-forward outputs

# --- Training ---
SEED: int = 1  # fixes the initial weights, the data order and the dropout
DEVICE: str = "auto"  # "auto", "cpu", "mps", "cuda" or "cuda:1"
PRECISION: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"  # auto = bf16 (else fp16) on CUDA, fp32 elsewhere
COMPILE: bool = False  # torch.compile: a minute or more at the start, for a GPU's time in every step after it
GRADIENT_CHECKPOINTING: bool = False  # a trained encoder keeps less for the backward pass, and computes it twice
FSDP: bool = False  # torchrun: spread weights and optimizer over the GPUs, for models that one card cannot hold
PROFILE: bool = False  # train no run: time 20 steps, print where the time goes, and leave
DETERMINISTIC: bool = False  # only operations that repeat to the bit: for exact resumes on CUDA, where it costs speed
NUM_EPOCHS: int | Literal["auto"] = 12  # an epoch visits each pair once (or as its set's weight says); auto: by size
BATCH_SIZE: int | Literal["auto"] = 80  # image-caption pairs per forward pass and process; auto = what a GPU can hold
CAPTIONS_PER_IMAGE: int = 5  # captions that share one encoder pass in a batch; 1 = one row per pair
GRAD_ACCUM_STEPS: int = 1  # forward passes per optimizer step
LEARNING_RATE: float = 1e-3  # peak rate of all weights that are not the encoder's
ENCODER_LEARNING_RATE: float | None = None  # peak rate of the encoder; None = LEARNING_RATE
LR_SCHEDULE: Literal["constant", "linear", "cosine", "step"] = "cosine"  # after the warmup
WARMUP_STEPS: int = 100  # optimizer steps from WARMUP_LR to LEARNING_RATE
WARMUP_RATIO: float | None = None  # the warmup as a share of all steps; replaces WARMUP_STEPS
WARMUP_LR: float = 0.0  # rate at the start of the warmup
MIN_LR: float = 1e-5  # rate at the end of "linear" and "cosine", floor of "step"
LR_DECAY_RATE: float = 0.8  # "step": factor applied after every epoch
WEIGHT_DECAY: float = 0.05  # not on biases, norms and embeddings
ADAM_BETAS: tuple[float, float] = (0.9, 0.98)  # AdamW's decay rates of the mean gradient and of its mean square
ADAM_EPS: float = 1e-8  # AdamW's guard against division by zero
GRAD_CLIP_VALUE: float = 1.0  # largest norm of the whole gradient; 0 = no clipping
EMA_DECAY: float = 0.0  # moving average of the weights, validated and exported in their place, e.g. 0.99; 0 = none
MAX_NONFINITE_STEPS: int = 3  # steps in a row without a finite loss and gradient, all skipped, before the run stops
LABEL_SMOOTHING: float = 0.1  # training loss only; the validation loss is the plain one
PATCH_DROP: float = 0.0  # share of a picture's patches that a training step leaves out, drawn anew each time
PATCH_DROP_WHOLE_EPOCHS: int = 0  # so many last epochs leave out none
OBJECTIVE: Literal["xe", "scst", "contrastive"] = "xe"  # docs/training.md; "contrastive": docs/retrieval.md
SCST_START_EPOCH: int = 0  # "scst": so many epochs of cross-entropy come first; 0 needs INIT_CHECKPOINT_PATH
SCST_SAMPLES: int = 5  # "scst": captions drawn per picture; each is measured against the mean of the others
SCST_REWARD: Literal["cider", "cider+bleu"] = "cider"  # CIDEr-D, alone or plus smoothed BLEU-4; <end> is a word in it
SCST_XE_WEIGHT: float = 0.0  # "scst": weight of the cross-entropy of one own caption per picture beside the reward
SCST_LEARNING_RATE: float = 1e-4  # "scst": peak rate, after a short warmup; WEIGHT_DECAY does not act there
SCST_LR_SCHEDULE: Literal["constant", "cosine"] = "constant"  # "scst": cosine falls to MIN_LR
CONTRASTIVE_WEIGHT: float = 0.0  # a retrieval head learns beside "xe", its loss times this; 0 = none, 0.5 is usual
CONTRASTIVE_LOSS: Literal["softmax", "sigmoid"] = "softmax"  # of that head: InfoNCE both ways, or yes or no per pair
VALIDATION_INTERVAL: int = 1  # epochs between validations; the last epoch always validates
VALIDATION_SCORE_IMAGES: int = 100  # validation images captioned (greedy) and scored each time; 0 = loss only
EARLY_STOPPING_PATIENCE: int = 0  # validations without a better loss before the run stops; 0 = never

# --- Runs ---
OUTPUT_DIR: str = "runs"  # each run gets a folder of its own in here
RUN_NAME: str | None = None  # name of that folder; None = DATASET and the next free number
RESUME_CHECKPOINT_PATH: str | None = None  # a checkpoint file, or "last": the newest whole one, or else a fresh start
CHECKPOINT_EVERY_STEPS: int = 0  # save last.safetensors after so many optimizer steps; 0 = by time and epoch only
CHECKPOINT_EVERY_MINUTES: float = 10.0  # and after so many minutes; 0 = never. Every epoch's end saves as well
INIT_CHECKPOINT_PATH: str | None = None  # start with weights and tokenizer of this checkpoint, or of a ViT-GPT2 folder
KEEP_BEST: int = 2  # best checkpoints kept in a run's folder
HF_REPO_ID: str | None = None  # "user/name" on the Hub: new best checkpoints are exported and uploaded beside the run
HF_PRIVATE: bool = True  # a repository that is made for HF_REPO_ID is private
LOG_WANDB: bool = False  # copy the log to Weights & Biases; WANDB_MODE=offline in the environment needs no login
WANDB_PROJECT: str = "nanocaption"  # where W&B files the run
WANDB_ENTITY: str | None = None  # None = your default entity
LOG_TENSORBOARD: bool = False  # copy it to TensorBoard as well, into the run's folder; needs: pip install tensorboard

# --- Captioning and scores ---
EVAL_BATCH_SIZE: int = 100  # images captioned at once
BEAM_SIZE: int = 3  # 1 = greedy
LENGTH_PENALTY: float = 1.0  # beam score = log-probability / length ** LENGTH_PENALTY; larger = longer captions
MIN_LENGTH: int = 0  # fewest tokens of a caption before its <end>
NO_REPEAT_NGRAM: int = 0  # no sequence of this many tokens occurs twice in a caption; 0 = off
NO_BAD_ENDINGS: bool = False  # English: no caption ends in a word that must go on, as "with", "in", "a", "the"
K_TEST: int = 16  # retrieval: the head's first candidates of each query, which the captioner's likelihood ranks anew
CONSENSUS: int = 0  # random captions a picture that judge the beams: the one most like them is taken; 0 = the likeliest
