"""What a caption is, whichever way it was found: ids with their probabilities, and the text of them. Without torch."""

import math
from typing import Generic, NamedTuple, TypeVar

from tokenizers import Tokenizer

from nanocaption.data.tokenizer import read_text

Maps = TypeVar("Maps")  # torch.Tensor; of an ONNX export numpy.ndarray


class Caption(NamedTuple):
    ids: list[int]  # without <start> and <end>
    log_prob: float  # sum over its tokens under the model, <end> included where it was reached
    score: float  # log_prob / length ** length_penalty


class CaptionText(NamedTuple, Generic[Maps]):
    text: str
    log_prob: float  # sum over its tokens
    score: float  # log_prob / length ** length_penalty, see decode.py
    ids: list[int]  # its tokens without <start> and <end>
    broken: bool = False  # whether they ended within a character or were no UTF-8; `text` is what was whole
    tokens: tuple[str, ...] = ()  # the ids as the tokenizer's vocabulary writes them: "Ġdog"
    attention: Maps | None = None  # float32 (len(ids), side, side), where asked for, see captions.caption_pictures


def caption_of(ids: list[int], end_id: int, log_prob: float, length_penalty: float) -> Caption:
    """ids: after <start>, up to the length limit, or to <end> with whatever follows it."""
    if math.isnan(log_prob):
        return Caption([], log_prob, log_prob)
    length = ids.index(end_id) + 1 if end_id in ids else len(ids)
    return Caption([token for token in ids[:length] if token != end_id], log_prob, log_prob / length**length_penalty)


def with_text(tokenizer: Tokenizer, caption: Caption) -> CaptionText[Maps]:
    text, broken = read_text(tokenizer, caption.ids)
    tokens = tuple(tokenizer.id_to_token(token) or "" for token in caption.ids)
    return CaptionText(text, caption.log_prob, caption.score, caption.ids, broken, tokens)
