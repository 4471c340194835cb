"""Text to ids and back: nothing lost, fixed special ids, trained anew exactly when it must be."""

import json

import pytest
from tokenizers import Tokenizer

from nanocaption.data.tokenizer import (
    END,
    PAD,
    START,
    UNK,
    captions_digest,
    check_tokenizer,
    encode,
    encode_batch,
    load_or_train,
    text_of,
    tokenizer_digest,
    tokenizer_from_json,
    train_tokenizer,
)

CAPTIONS = ["A dog runs on the beach.", "Two dogs run on the sand.", "A red ball on the beach."] * 3
ODD_TEXTS = [
    "A dog.", "", " ", "  two  spaces ", "\tA tab\nand a line\r\n", "naïve café — 東京", "🐕 und 👨‍👩‍👧‍👦 é",
    "<end>", "<start> of the <pad> by <unk>", "a\0b", "ﬁ ﬀ ½ ß İ", "\ufeffmark", "\U0010ffff",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(CAPTIONS, folder, 300), folder


def test_special_ids_and_size(trained):
    tokenizer, _ = trained
    assert [tokenizer.token_to_id(t) for t in ("<pad>", "<start>", "<end>", "<unk>")] == [0, 1, 2, 3]
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)
    assert 260 < tokenizer.get_vocab_size() <= 300


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_any_text_makes_the_round_trip(trained, text):
    ids = encode(trained[0], text, max_length=200)
    assert ids[0] == START and ids[-1] == END
    assert not {PAD, START, END, UNK} & set(ids[1:-1])  # "<end>" in a caption is text
    assert text_of(trained[0], ids) == text


def test_a_lone_surrogate_is_one_clear_error(trained, tmp_path):
    with pytest.raises(ValueError, match=r"^The caption 'half \\ud83d' .*Unicode.*$"):
        encode(trained[0], "half \ud83d", max_length=20)
    with pytest.raises(ValueError, match=r"^The caption 'half \\ud83d' "):
        train_tokenizer(["a dog", "half \ud83d"], tmp_path / "new", 300)
    assert not (tmp_path / "new" / "digest.json").exists()


def test_a_long_caption_is_cut_and_has_no_end(trained):
    whole = encode(trained[0], CAPTIONS[0], max_length=100)
    for length in range(2, len(whole) + 3):
        ids = encode(trained[0], CAPTIONS[0], max_length=length)
        assert ids == whole[:length] and (END in ids) == (length >= len(whole))


def test_encode_batch_is_encode_in_order(trained):
    batch = encode_batch(trained[0], ODD_TEXTS, 12)
    assert batch == [encode(trained[0], text, 12) for text in ODD_TEXTS]


def test_decode_stops_at_the_first_end_and_leaves_control_tokens_out(trained):
    ids = encode(trained[0], "A dog", 20)
    assert text_of(trained[0], [*ids, *encode(trained[0], " more", 20), PAD]) == "A dog"
    assert text_of(trained[0], [START, PAD, *ids[1:-1]]) == "A dog"
    assert text_of(trained[0], [END, 70]) == ""


def test_a_word_has_the_same_token_at_the_start_and_inside(trained):
    first, inside = encode(trained[0], "on the", 20), encode(trained[0], "on on the", 20)
    assert first[1:] == inside[2:]


def test_training_is_deterministic_and_learns_from_the_captions_alone(trained, tmp_path):
    again = train_tokenizer(CAPTIONS, tmp_path / "again", 300)
    other = train_tokenizer(["Completely different words."] * 3, tmp_path / "other", 300)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "digest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained[1] / name).read_bytes()
    assert tokenizer_digest(again) != tokenizer_digest(other)


def test_a_vocabulary_without_room_and_no_captions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="VOCAB_SIZE = 259 must be at least 260"):
        train_tokenizer(CAPTIONS, tmp_path, 259)
    assert train_tokenizer(CAPTIONS, tmp_path, 260).get_vocab_size() == 260
    with pytest.raises(ValueError, match="none"):
        train_tokenizer([], tmp_path, 300)


def test_loaded_when_nothing_changed(tmp_path):
    first, fresh = load_or_train(CAPTIONS, tmp_path, 300)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second, fresh_again = load_or_train(CAPTIONS, tmp_path, 300)
    assert (fresh, fresh_again) == (True, False)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    for text in ODD_TEXTS:
        assert encode(first, text, 50) == encode(second, text, 50)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "digest.json"])
def test_trained_anew_where_a_file_is_missing(tmp_path, name):
    load_or_train(CAPTIONS, tmp_path, 300)
    (tmp_path / name).unlink()
    assert load_or_train(CAPTIONS, tmp_path, 300)[1]
    assert (tmp_path / name).is_file()
    assert not load_or_train(CAPTIONS, tmp_path, 300)[1]


@pytest.mark.parametrize(
    "captions, size",
    [(CAPTIONS[:-1], 300), (CAPTIONS[::-1], 300), (["a dog runs", *CAPTIONS[1:]], 300), (CAPTIONS, 299)],
    ids=["fewer", "order", "letter", "size"],
)
def test_trained_anew_where_captions_or_size_changed(tmp_path, captions, size):
    load_or_train(CAPTIONS, tmp_path, 300)
    assert load_or_train(captions, tmp_path, size)[1]


def test_joined_captions_do_not_have_the_digest_of_separate_ones():
    digest = captions_digest
    assert digest(["a", "b"], 300) != digest(["ab"], 300) != digest(["a\nb"], 300)


@pytest.mark.parametrize("damage", ["merge", "not json", "cut", "digest"])
def test_trained_anew_where_a_file_was_altered(tmp_path, damage):
    original = load_or_train(CAPTIONS, tmp_path, 300)[0].to_str()
    path = tmp_path / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    if damage == "merge":  # still a sound tokenizer, but another one
        content = json.loads(text)
        content["model"]["merges"].pop()
        path.write_text(json.dumps(content), encoding="utf-8")
        assert Tokenizer.from_file(str(path)).to_str() != original
    elif damage == "digest":
        (tmp_path / "digest.json").write_text("[")
    else:
        path.write_text(text[:1000] if damage == "cut" else "no", encoding="utf-8")
    tokenizer, fresh = load_or_train(CAPTIONS, tmp_path, 300)
    assert fresh and tokenizer.to_str() == original


def test_a_checkpoint_restores_the_same_tokenizer(trained):
    again = tokenizer_from_json(trained[0].to_str())
    assert tokenizer_digest(again) == tokenizer_digest(trained[0])
    assert [encode(again, t, 50) for t in ODD_TEXTS] == [encode(trained[0], t, 50) for t in ODD_TEXTS]


def test_self_check_refuses_other_ids_a_lossy_round_trip_and_nonsense(trained):
    text = trained[0].to_str()
    check_tokenizer(Tokenizer.from_str(text))
    swapped = text.replace("<pad>", "<x>").replace("<start>", "<pad>").replace("<x>", "<start>")
    with pytest.raises(ValueError, match=r"have the ids \[1, 0, 2, 3\], must be 0, 1, 2, 3"):
        tokenizer_from_json(swapped, "here")
    lossy = json.loads(text)
    lossy["normalizer"] = {"type": "Lowercase"}
    with pytest.raises(ValueError, match="here: 'A dog.' comes back as 'a dog.'"):
        check_tokenizer(Tokenizer.from_str(json.dumps(lossy)), "here")
    with pytest.raises(ValueError, match="here cannot be read: its normalizer is 'Lowercase', only byte-level BPE"):
        tokenizer_from_json(json.dumps(lossy), "here")
    with pytest.raises(ValueError, match="here cannot be read"):
        tokenizer_from_json("{}", "here")


def test_the_folder_loads_in_transformers_with_the_same_ids(trained):
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(trained[1])
    for text in [*CAPTIONS[:3], "naïve café — 東京", "🐕 runs", "two  spaces inside", "<end> of the <pad>"]:
        assert auto(text).input_ids == encode(trained[0], text, 100)
        assert auto.decode(auto(text).input_ids, skip_special_tokens=True).strip() == text
    assert (auto.pad_token, auto.bos_token, auto.eos_token, auto.unk_token) == ("<pad>", "<start>", "<end>", "<unk>")
    assert (auto.pad_token_id, auto.bos_token_id, auto.eos_token_id, auto.unk_token_id) == (0, 1, 2, 3)
    padded = auto(["A dog", CAPTIONS[0]], padding=True).input_ids
    assert len(padded[0]) == len(padded[1]) and padded[0][-1] == PAD
