"""Answers to questions about pictures: models, a tokenizer and options -> texts with their probabilities.

Q questions about N pictures, each of which is encoded once, whatever is asked about it.
"""

import math
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nanocaption.data.any_picture import AnyPicture, fitted_pictures
from nanocaption.data.caption_text import normalise
from nanocaption.data.packing import find_places, padded, unpack
from nanocaption.data.question_tokens import answer_starts, encode_questions, question_ids
from nanocaption.data.questions import Asking
from nanocaption.data.tokenizer import END, PAD, SEP
from nanocaption.model import decode
from nanocaption.model.caption_types import CaptionText, with_text
from nanocaption.model.captions import Captioner
from nanocaption.model.decoder import Prefix
from nanocaption.model.endings import endings_of
from nanocaption.model.options import Names, Options, asked, search_options


def answer_questions(
    models: Sequence[Captioner],
    tokenizer: Tokenizer,
    pixels: Sequence[Tensor],
    questions: Sequence[tuple[int, Asking]],
    options: Options,
    seeds: Sequence[int] | None = None,
) -> list[list[CaptionText]]:
    """Answers to Q questions by one model, or by several whose probabilities are averaged; of each the best first.

    pixels: per model its own reading of the N pictures, on the models' device, or features of them. questions:
    of each (which picture it is about, the question). seeds: of random answers, one per question. An answer depends on
    its own question and picture alone, not on what else is asked in the same call. A question that is too long is not
    fed: its answers are none, an empty list.
    """
    longest, device = min(model.decoder.max_seq_len for model in models), pixels[0].device
    ids = question_ids(tokenizer, [asking for _, asking in questions], longest)
    fed = [number for number, row in enumerate(ids) if row is not None]
    found: list[list[CaptionText]] = [[] for _ in questions]
    if not fed:
        return found
    rows = [ids[number] or [] for number in fed]
    if (room := longest - 1 - max(map(len, rows))) < options.min_length:
        raise ValueError(f"min_length = {options.min_length}: beside the longest question an answer has room for "
                         f"{room} tokens")  # fmt: skip
    images = torch.tensor([questions[number][0] for number in fed], device=device)
    prefix = Prefix(torch.from_numpy(padded(rows, PAD)).to(device), images)
    steps = [model.start_decoding(own, prefix) for model, own in zip(models, pixels, strict=True)]
    endings = endings_of(tokenizer).on(device) if options.no_bad_endings else None
    # The same limit whatever is in the batch, which each row reaches by itself: see Decoder.step.
    limits = decode.Limits(SEP, END, longest, device, endings)
    own_seeds = None if seeds is None else [seeds[number] for number in fed]
    results = decode.decode(decode.ensemble(steps), len(fed), options, limits, own_seeds)
    for number, answers in zip(fed, results, strict=True):
        found[number] = [with_text(tokenizer, answer) for answer in answers]
    return found


@torch.inference_mode()
def answer_log_probs(
    model: Captioner, tokenizer: Tokenizer, pixels: Tensor, questions: Sequence[tuple[int, Asking]]
) -> list[float]:
    """The log-probability of the answer that each Asking holds, <end> included: for choices by likelihood.

    pixels, questions: as of answer_questions. Of a question that is too long, and of an answer that would be cut, it is
    -inf.
    """
    rows = encode_questions(tokenizer, [asking for _, asking in questions], model.decoder.max_seq_len).rows
    fits = [number for number, row in enumerate(rows) if row is not None and row[-1] == END]
    found = [-math.inf] * len(rows)
    if not fits:
        return found
    ids = [rows[number] for number in fits]
    tokens = torch.from_numpy(padded([row[:-1] for row in ids], PAD)).to(pixels.device)
    targets = torch.from_numpy(padded([row[1:] for row in ids], PAD)).to(pixels.device)
    images = torch.tensor([questions[number][0] for number in fits], device=pixels.device)
    places = find_places(tokens, PAD, images, len(pixels))
    logits = model.decoder.logits(model.hidden(pixels, tokens, places)).float()  # (R, V)
    flat = targets.flatten().index_select(0, places.in_captions)
    chosen = unpack(logits.log_softmax(-1).gather(1, flat[:, None]), places.in_captions, places.captions)[..., 0]
    for number, row, own in zip(fits, ids, chosen.tolist(), strict=True):
        found[number] = sum(own[answer_starts(row) - 1 : len(row) - 1])
    return found


@torch.inference_mode()
def answer_picture(
    model: Captioner, picture: AnyPicture, questions: Sequence[str], options: Names
) -> list[list[CaptionText]]:
    """Answers to questions about one picture in any form of data/any_picture.py, by a model with its own tokenizer.

    options: in place of the search settings the model was saved with. Raises ValueError with one line for a model, a
    picture, a question or an option that is not taken.
    """
    if model.tokenizer is None or model.about is None:
        raise ValueError("This model has no tokenizer of its own: ImageToTextModel.from_pretrained gives one that has.")
    config = model.about["config"]
    if not config.get("QUESTIONS"):
        raise ValueError("This model captions pictures and was not trained on questions: model.caption(picture).")
    if isinstance(questions, str) or not all(any(map(str.isalnum, question)) for question in questions):
        raise ValueError("Questions are a list of texts, each with at least one word.")
    how = asked(options, search_options(config))
    askings = [Asking(normalise(question, config.get("CAPTION_CASE", "keep")), "") for question in questions]
    for asking in askings:
        refuse_long(model.tokenizer, asking, model.decoder.max_seq_len)
    pixels = torch.stack(list(fitted_pictures([picture], model.image_spec))).to(model.mean.device)
    seeds = None if how.seed is None else [how.seed] * len(askings)
    found = answer_questions([model], model.tokenizer, [pixels], [(0, one) for one in askings], how.options, seeds)
    return [answers[: how.captions] for answers in found]


def head_of(tokenizer: Tokenizer, asking: Asking, longest: int) -> list[int]:
    """The ids behind which the answer to a question comes, <sep> the last. Raises ValueError as refuse_long."""
    refuse_long(tokenizer, asking, longest)
    return [*(question_ids(tokenizer, [asking], longest)[0] or []), SEP]


def refuse_long(tokenizer: Tokenizer, asking: Asking, longest: int) -> None:
    """ValueError with one line where a question leaves no room for an answer in `longest` tokens, MAX_SEQ_LEN."""
    if question_ids(tokenizer, [asking], longest)[0] is None:
        needed = len(question_ids(tokenizer, [asking], 2**31)[0] or [])
        raise ValueError(f"The question {asking.question[:60]!r} has {needed} tokens, and the model reads at most "
                         f"{longest - 3} (MAX_SEQ_LEN = {longest}, with room for an answer): ask in fewer words")
