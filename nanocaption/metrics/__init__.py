"""Caption scores without Java: Penn Treebank tokens, BLEU, CIDEr-D, ROUGE-L, equal to pycocoevalcap.

    from nanocaption.metrics import score
    score({1: ["A dog runs.", "The dog is running"]}, {1: "A dog running"})   # {"Bleu_1": ..., "CIDEr": ...}

- `ptb_tokenize(captions)`: one batch of captions to token strings.
- `score(references, candidates)`: corpus scores, a plain dict with the keys `Bleu_1` ... `Bleu_4`, `CIDEr`,
  `ROUGE_L`, as fractions. `score_per_image(...)`: the same for each image, by id.
- `prepare_references(references)`, then `score_prepared(prepared, candidates)` -> `Scores(corpus, per_image)`, many
  times; `cider_rewards(prepared, images, captions)` for any captions of any of its images.
- `consensus(prepared, candidates, judges)`: how far captions agree with others of their picture (minimum Bayes risk).
- `measure(prepared, candidates)` holds what each image adds: `total(measured)` makes `Scores` of it,
  `intervals(measured)` their bootstrap intervals, `compare(first, second)` a paired test of two models' captions.
  `part_of(measured, places)` has some of the images, their CIDEr with the document frequencies of all.
  `mean_intervals(columns, owners)`: those of plain means, of several values a picture.
  `measure(..., meteor=True, spice=True)` adds these two, by their own Java programs; `require_java(meteor, spice)`
  raises first where these are missing.
- `leave_one_out(references)`: how well the people who wrote the references agree.
- All of these take `tokenize`: `ptb_tokenize` as the field does, or `character_tokenize` for languages without spaces
  between words (`TOKENIZERS` has them by name).
- `text_statistics(captions)`: distinct n-grams, lengths, vocabulary, repetition; needs no references.
- `nanocaption score references.json predictions.json [--compare other.json] [--json out.json]`: for files of
  anyone's model.

`references` is {image id: [captions]}, `candidates` {image id: caption}, captions as written. Three things to
know before two numbers are compared: what the field prints as CIDEr is CIDEr-D; it depends on the set of
images, whose references give the document frequencies; and a caption's tokens can depend on the caption after
it, so order matters, rarely.
"""

from nanocaption.metrics.bootstrap import Difference, compare, differences_table, intervals, mean_intervals
from nanocaption.metrics.characters import character_tokenize
from nanocaption.metrics.consensus import consensus
from nanocaption.metrics.diversity import TextStatistics, ends_badly, text_statistics
from nanocaption.metrics.files import references_digest, require_same_references, signature
from nanocaption.metrics.java import require_java
from nanocaption.metrics.ptb import ptb_tokenize
from nanocaption.metrics.scores import (
    Measured,
    References,
    Scores,
    cider_rewards,
    leave_one_out,
    measure,
    part_of,
    prepare_references,
    score,
    score_per_image,
    score_prepared,
    total,
)

TOKENIZERS = {"ptb": ptb_tokenize, "characters": character_tokenize}
