"""Text to token ids and back: the face of nanocaption/data/tokenizer.py, a byte-level BPE trained on the captions."""

from nanocaption.data.tokenizer import (
    END,
    PAD,
    START,
    UNK,
    encode,
    encode_batch,
    load_or_train,
    text_of,
    tokenizer_from_json,
    train_tokenizer,
)

__all__ = [
    "END", "PAD", "START", "UNK", "encode", "encode_batch", "load_or_train", "text_of", "tokenizer_from_json",
    "train_tokenizer",
]  # fmt: skip
