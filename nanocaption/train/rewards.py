"""What a drawn caption earns in self-critical training: CIDEr-D against its picture's training captions.

Four rules keep the reward honest (facts in docs/training.md):
- The end of a caption is a word of it. Without that, fragments such as "a dog on a" cost next to nothing and one more
  matched n-gram pays for them: published scores hold up to four points of this.
- A caption earns that word only where it drew <end>, and where it ends with the sign that nearly all training captions
  end with, because the tokenizer of the metric drops signs: nothing else would hold the full stop.
- Each caption is cut into words alone: in a batch its words could depend on the caption after it.
- Document frequencies are those of the whole training set, over pictures.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nanocaption.data.prepared import Record
from nanocaption.metrics.characters import character_tokenize, without_spaces
from nanocaption.metrics.diversity import ends_badly
from nanocaption.metrics.ptb import LINE_ENDS, Tokenize, ptb_tokenize
from nanocaption.metrics.scores import MANY_UNSPACED, References, bleu_rewards, cider_rewards, prepare_references

# Words of the reward that no text gives: PTB's tokens are in lower case.
_END, _NO_TEXT = "<END>", "<NO-TEXT>"
MOST = 0.9  # share of the training captions from which their last sign is asked of drawn ones


class Rewards(NamedTuple):
    """What a run's rewards are computed with."""

    references: References  # of the training pictures by their number, in words, each caption with its end
    tokenize: Tokenize
    ending: str  # what a caption has to end with to earn its end; "" where the training captions have nothing in common
    bleu: bool  # whether BLEU-4 is added


class Earned(NamedTuple):
    """Of each drawn caption."""

    rewards: np.ndarray  # (B,) float64
    lengths: np.ndarray  # (B,) words
    bad_endings: np.ndarray  # (B,) whether it ended, and badly, see metrics.diversity.ends_badly
    unsigned: np.ndarray  # (B,) whether `Rewards.ending` is missing


def make_rewards(records: Sequence[Record], kind: str) -> tuple[Rewards, list[str]]:
    """What rewards captions of training pictures, and what to tell of it.

    records: the training pictures with their captions as they were written. kind: the setting SCST_REWARD.
    Raises ValueError with one line where CIDEr cannot reward anything.
    """
    captions = {number: record["captions"] for number, record in enumerate(records) if record["captions"]}
    if len(captions) < 2:
        raise ValueError(
            f"OBJECTIVE = 'scst' with {len(captions)} captioned training picture(s): CIDEr is 0 there, as its document "
            "frequencies need other pictures. Give more, or take OBJECTIVE = 'xe'"
        )
    texts = list(itertools.chain.from_iterable(captions.values()))
    notes, tokenize, unspaced = [], ptb_tokenize, without_spaces(texts) / len(texts)
    if unspaced > MANY_UNSPACED:
        tokenize = character_tokenize
        notes.append(
            f"reward: {unspaced:.0%} of the training captions are written without spaces between words; characters "
            "count as words. Scores to compare with: evaluate.py --tokenize characters"
        )
    if 2 * sum(len(own) == 1 for own in captions.values()) > len(captions):
        notes.append(
            "WARNING: most training pictures have one caption: a drawn one is rewarded for hitting that one phrasing, "
            "a noisy reward. Sets with several captions a picture are what this objective is made for."
        )
    ending = common_ending(texts)
    words = iter(_with_ends(tokenize, texts, [0] * len(texts), [True] * len(texts)))
    references = prepare_references({number: [next(words) for _ in own] for number, own in captions.items()}, list)
    notes.append(
        f"reward: CIDEr-D{' plus BLEU-4' * (kind == 'cider+bleu')} against {len(texts):,} captions of "
        f"{len(captions):,} pictures; the end counts as a word, earned by an <end>{f' after {ending!r}' * bool(ending)}"
    )
    return Rewards(references, tokenize, ending, kind == "cider+bleu"), notes


def common_ending(captions: Sequence[str]) -> str:
    """The sign with which more than MOST of the captions end; "" where there is none."""
    last = Counter(caption.rstrip()[-1:] for caption in captions)
    sign, times = last.most_common(1)[0]
    return sign if times > MOST * len(captions) and sign and not sign.isalnum() else ""


def earn(
    rewards: Rewards, images: Sequence[int], texts: Sequence[str], without_text: Sequence[int], ended: Sequence[bool]
) -> Earned:
    """What captions `texts` of the training pictures `images` earn, each by itself.

    without_text: how many tokens of each are none of a text (<pad>, <start>, <unk>); each counts as a word that no
    reference has. ended: whether each drew its <end>.
    """
    signed = [text.rstrip().endswith(rewards.ending) for text in texts]
    earns_end = [end and sign for end, sign in zip(ended, signed, strict=True)]
    words = _with_ends(rewards.tokenize, texts, without_text, earns_end)
    found = cider_rewards(rewards.references, images, words)
    if rewards.bleu:
        found = found + bleu_rewards(rewards.references, images, words)
    plain = [[word for word in caption.split() if word not in (_END, _NO_TEXT)] for caption in words]
    bad = [end and ends_badly(text) for text, end in zip(texts, ended, strict=True)]
    return Earned(found, np.array([len(own) for own in plain]), np.array(bad), ~np.array(signed))


def _with_ends(
    tokenize: Tokenize, texts: Sequence[str], without_text: Sequence[int], earns_end: Sequence[bool]
) -> list[str]:
    """The words of each caption, cut by itself, joined by spaces."""
    found = []
    for text, strange, end in zip(texts, without_text, earns_end, strict=True):
        (own,) = tokenize([LINE_ENDS.sub(" ", text)])
        found.append(" ".join([*filter(None, [own]), *[_NO_TEXT] * strange, *[_END] * end]))
    return found
