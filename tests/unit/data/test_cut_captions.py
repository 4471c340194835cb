"""Captions longer than MAX_SEQ_LEN: cut at whole characters, without an end, and counted."""

import numpy as np
import pytest

from nanocaption.base.settings import load_settings
from nanocaption.data import inputs
from nanocaption.data.dataset import collate_fn
from nanocaption.data.inputs import cut_notes, encoded_captions
from nanocaption.data.tokenizer import (
    END,
    START,
    cut_lengths,
    encode,
    encode_batch,
    read_text,
    text_of,
    train_tokenizer,
    whole_characters,
)

CHINESE = ["一只棕色的狗在绿色的草地上奔跑", "两个男人站在红色的汽车旁边", "孩子们在海滩上玩耍🐕‍🦺和球"]
ENGLISH = ["A brown dog runs over the green grass.", "Two men stand beside a red car."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """Hardly more than bytes: characters of three and four tokens."""
    return train_tokenizer([*CHINESE, *ENGLISH], tmp_path_factory.mktemp("tokenizer"), 290)


@pytest.mark.parametrize("caption", [*CHINESE, *ENGLISH])
def test_a_cut_caption_is_a_beginning_of_whole_characters_without_an_end(tokenizer, caption):
    whole = encode(tokenizer, caption, 1000)
    assert whole[-1] == END and text_of(tokenizer, whole) == caption
    for length in range(3, len(whole) + 2):
        ids = encode(tokenizer, caption, length)
        if length >= len(whole):
            assert ids == whole
            continue
        text, broken = read_text(tokenizer, ids)
        assert END not in ids and ids == whole[: len(ids)] and len(ids) <= length
        assert caption.startswith(text) and not broken and "\ufffd" not in text
        longer = [read_text(tokenizer, whole[:more]) for more in range(len(ids) + 1, length + 1)]
        assert all(broken for _, broken in longer)  # no more than had to go


def test_the_control_a_cut_by_tokens_alone_ends_within_characters(tokenizer):
    whole = encode(tokenizer, CHINESE[0], 1000)[1:-1]
    broken = [length for length in range(1, len(whole)) if read_text(tokenizer, whole[:length])[1]]
    assert len(broken) > 10
    for length in broken:
        assert len(whole_characters(tokenizer, whole[:length])) < length


def test_what_is_no_utf8_is_left_out_and_told(tokenizer):
    dog, (first, *rest) = (encode(tokenizer, text, 99)[1:-1] for text in ("a dog", "狗"))
    cut = [*dog, first, *rest][:-1]
    assert text_of(tokenizer, cut).rstrip() == "a dog" and read_text(tokenizer, cut)[1]
    assert text_of(tokenizer, [*dog, rest[-1], *dog]) == "a dog a dog"
    assert read_text(tokenizer, [rest[-1]]) == ("", True)
    own = encode(tokenizer, "a \ufffd mark", 99)  # the character itself is text
    assert read_text(tokenizer, own) == ("a \ufffd mark", False)
    assert read_text(tokenizer, [START, *dog, END, first]) == ("a dog", False)


def test_the_last_target_of_a_cut_caption_is_its_last_token(tokenizer):
    rows = encode_batch(tokenizer, [ENGLISH[0], "a"], 8)
    batch = collate_fn([(np.zeros((3, 2, 2), np.uint8), [np.asarray(row) for row in rows])])
    cut, short = batch.target_tokens.tolist()
    assert END not in cut and cut == rows[0][1:] and len(cut) == 7
    assert END in short


def test_cached_rows_are_the_rows_and_those_of_before_do_not_serve(tokenizer, flags, tmp_path, monkeypatch):
    settings = load_settings([*flags, "--max-seq-len", "9"])
    texts = [*CHINESE, *ENGLISH, "a"] * 3
    expected = encode_batch(tokenizer, texts, 9)
    monkeypatch.setattr(inputs, "KEPT_FROM", 2)
    for _ in range(2):
        assert [list(row) for row in encoded_captions(settings, tmp_path, "train", texts, tokenizer)] == expected
    assert len(list((tmp_path / "cache").iterdir())) == 1
    before = {path.name for path in (tmp_path / "cache").iterdir()}
    old = [list(row) for row in encoded_captions(settings, tmp_path, "train", texts, tokenizer, encoding=1)]
    assert {path.name for path in (tmp_path / "cache").iterdir()} != before and old != expected
    assert old == [ids if len(ids) <= 9 else [*ids[:8], END] for ids in encode_batch(tokenizer, texts, 1000)]


def test_cuts_are_counted_with_the_longest_and_what_would_hold_all(tokenizer):
    texts = [*CHINESE, *ENGLISH, "a"]
    lengths = [len(encode(tokenizer, text, 1000)) for text in texts]
    limit = sorted(lengths)[-2]
    rows = encode_batch(tokenizer, texts, limit)
    cut = cut_lengths(tokenizer, texts, rows, limit)
    assert cut == [max(lengths)] == cut_lengths(tokenizer, texts, encode_batch(tokenizer, texts, limit, 1), limit)
    line, loud = cut_notes("train", cut, len(texts), limit)
    assert f"train: 1 of 6 (16.67%) are cut to MAX_SEQ_LEN = {limit}" in line
    assert f"MAX_SEQ_LEN = {max(lengths)} would hold all" in line
    assert loud.startswith("WARNING") and f"Set MAX_SEQ_LEN = {max(lengths)} to hold 99 %" in loud
    assert cut_lengths(tokenizer, texts, encode_batch(tokenizer, texts, max(lengths)), max(lengths)) == []
    assert cut_notes("val", [], 6, 9) == []


def test_one_in_a_hundred_is_not_loud_and_the_advice_holds_99_percent():
    assert len(cut_notes("train", [50], 100, 40)) == 1
    (_, loud) = cut_notes("train", [*range(41, 61)], 1000, 40)  # 20 of 1,000: all but ten fit into 50
    assert "Set MAX_SEQ_LEN = 50 " in loud
