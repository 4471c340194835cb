"""Bad endings: the table of a tokenizer sees what the text's own words say, and no way of choosing gets around it."""

import random

import pytest
import torch

from nanocaption.data.tokenizer import END, START, encode, read_text, text_of, train_tokenizer
from nanocaption.metrics import ends_badly, text_statistics
from nanocaption.metrics.diversity import BAD_ENDINGS
from nanocaption.model import decode
from nanocaption.model.endings import endings_of
from nanocaption.model.options import Options
from nanocaption.score.results import scores_table
from tests.unit.model.test_decode import beam_search, ids, toy_step

TEXTS = ["A dog runs on a beach.", "a man with the hat in his hand", "The cat is on the mat while it rains."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS * 3, tmp_path_factory.mktemp("tokenizer"), 300)


def state_of(endings, tokens) -> int:
    state = 0
    for token in tokens:
        state = int(endings.following[state, token])
    return state


def test_the_last_word_decides_whatever_sign_is_behind_it():
    bad = ["a dog on a", "a dog on a.", "a dog on A .", "With", "on the -", 'he said "a"', "a dog, and...", "wearing!"]
    good = ["", ".", "a dog.", "a drive-in", "a dog's", "a walk-on.", "a thing", "banana", "a dog on a é", "a 1"]
    assert [ends_badly(text) for text in bad + good] == [True] * len(bad) + [False] * len(good)
    text = text_statistics(["a dog on a", "A dog runs.", "Stop!", ""])
    assert text.bad_endings == 0.25 and text.unstopped == 0.5
    scores = {"corpus": {}, "intervals": {}, "images": 200, "text": text._asdict() | {"seen": 0.0}}
    assert "25.0% end in a word that must go on, 50.0% have no full stop" in scores_table(scores)


def test_the_table_agrees_with_the_words_of_any_text_however_it_is_cut_into_tokens(tokenizer):
    endings = endings_of(tokenizer)
    rng = random.Random(1)
    pieces = [*BAD_ENDINGS, "With", "dog", "on-", "thé", "her's", *4 * " ", *".,!-'é1_"]
    found = {True: 0, False: 0}
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 6)))
        tokens = encode(tokenizer, text, 1000)[1:-1]
        letters = [tokenizer.token_to_id(letter) for token in tokens for letter in tokenizer.id_to_token(token)]
        for way in (tokens, letters):
            state = state_of(endings, [START, *way])
            assert text_of(tokenizer, way) == text
            assert bool(endings.forbidden[state, END]) == ends_badly(text), text
        found[ends_badly(text)] += 1
    assert min(found.values()) > 300


def test_a_full_stop_may_not_come_behind_a_bad_word_and_may_behind_another(tokenizer):
    endings, stop = endings_of(tokenizer), tokenizer.token_to_id(".")
    for text in ("a dog on a", "with", "a dog and "):
        assert endings.forbidden[state_of(endings, encode(tokenizer, text, 99)[:-1]), stop], text
    for text in ("a dog on a beach", "", "drive-in"):
        assert not endings.forbidden[state_of(endings, encode(tokenizer, text, 99)[:-1]), stop], text


HOW = [Options(), Options(beam_size=4), Options(beam_size=4, beam_groups=2), Options(samples=6, temperature=1.5)]


@pytest.mark.parametrize("options", HOW, ids=["greedy", "beam", "groups", "samples"])
@pytest.mark.parametrize("members", [1, 2], ids=["one", "ensemble"])
def test_no_caption_ends_badly_with_the_switch_and_many_do_without(tokenizer, options, members):
    """Captions of a table of the last token alone, in which bad words, stops and <end> are likely."""
    vocabulary = tokenizer.get_vocab_size()
    texts = ("a on with the dog.", "his wi th")
    likely = [END, *(token for text in texts for token in encode(tokenizer, text, 99)[1:-1])]
    limits = decode.Limits(START, END, 8, "cpu", endings_of(tokenizer))
    bad = {True: 0, False: 0}
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        tables = [torch.randn(vocabulary, vocabulary, generator=generator) for _ in range(members)]
        for table in tables:
            table[:, likely] += 8
        step = decode.ensemble([lambda tokens, parents=None, table=table: table[tokens] for table in tables])
        for switch in bad:
            found = decode.decode(step, 3, options._replace(no_bad_endings=switch), limits, [seed, 1, 2])
            # Bytes that are no character stand in no text, which may then end badly: such a caption is told as broken.
            read = [read_text(tokenizer, caption.ids) for captions in found for caption in captions]
            bad[switch] += sum(ends_badly(text) for text, broken in read if not broken)
    assert bad[True] == 0 and bad[False] > 3


def test_where_nothing_else_is_left_a_caption_may_end_badly(tokenizer):
    """Tokens that may each come once, and are all used up."""
    (word,) = encode(tokenizer, "a", 99)[1:-1]
    endings = endings_of(tokenizer)
    only = torch.full((tokenizer.get_vocab_size(),), -1e4)
    only[word] = 0.0
    limits = decode.Limits(START, END, 4, "cpu", endings._replace(forbidden=endings.forbidden | (only < 0)))
    options = Options(no_bad_endings=True, no_repeat_ngram=1)
    ((caption,),) = decode.decode(lambda tokens, parents=None: only.expand(len(tokens), -1), 1, options, limits)
    assert caption.ids == [word]


def test_the_switch_without_a_table_is_refused():
    with pytest.raises(ValueError, match="needs the table of a tokenizer"):
        decode.decode(toy_step(0, [0], 5), 1, Options(no_bad_endings=True), decode.Limits(0, 1, 4))


# --- one search for several length penalties ---


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_one_search_gives_for_each_length_penalty_what_a_search_with_it_alone_gives(beams):
    penalties, differ = [0.0, 0.7, 1.0, 2.5], 0
    for seed in range(12):
        limits = decode.Limits(0, 1, 7)
        options = Options(beam_size=beams, no_repeat_ngram=2, min_length=1)
        together = decode.beam_searches(toy_step(seed, [0, 1, 2], 5), 3, options, limits, penalties)
        for penalty, found in zip(penalties, together, strict=True):
            alone = beam_search(toy_step(seed, [0, 1, 2], 5), 3, beams, no_repeat_ngram=2, min_length=1, max_length=7,
                                length_penalty=penalty, start_id=0, end_id=1)  # fmt: skip
            assert found == alone
        differ += ids(together[0]) != ids(together[-1])
    assert differ > 6  # the control: a penalty does change what is found


def test_several_penalties_with_groups_are_refused():
    options = Options(beam_size=2, beam_groups=2)
    with pytest.raises(ValueError, match="do not go with beam_groups"):
        decode.beam_searches(toy_step(0, [0], 5), 1, options, decode.Limits(0, 1, 4), [0, 1])
