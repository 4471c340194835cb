"""Text to token ids and back: a byte-level BPE trained on the training captions.

`tokenizer.json` is the truth; `vocab.json` and `merges.txt` lie beside it for people and other tools, they do not
hold the special tokens. `<pad> <start> <end> <unk>` have the ids 0 1 2 3. Every byte has a token, so any Unicode text
makes the round trip unchanged and <unk> never occurs.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from nanocaption.base.files import beside, read_only, write_file

SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNK = range(4)
SEP = UNK  # between a question and its answer: no text gives it, and earlier checkpoints have it
# Goes up when a run's captions or pictures would be others; runs keep theirs. 1: cut captions had an <end>. 2:
# RANDOM_FLIP mirrored pictures whose captions name left or right as well. 3: shares of a mix were rounded up.
ENCODING = 4
FOR_TRANSFORMERS = {  # tokenizer_config.json
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": True,  # "<end>" in a caption is text there as well
}  # fmt: skip
MAX_BYTES = 2**25  # of a tokenizer.json; one of 50,000 tokens has 3 million
MAX_TOKEN = 20_000  # characters of a token: the bytes of the longest caption
_PARTS: dict[str, tuple[str | None, ...]] = {  # of a tokenizer.json, the types that are read
    "model": ("BPE",), "normalizer": (None,), "pre_tokenizer": ("ByteLevel",), "decoder": ("ByteLevel",),
    "post_processor": (None, "TemplateProcessing", "ByteLevel"), "truncation": (None,), "padding": (None,),
}  # fmt: skip
_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "digest.json")


def train_tokenizer(captions: Sequence[str], folder: Path | str, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE on `captions` and write it to `folder`; returns it.

    The vocabulary may stay below `vocab_size` where the captions hold no more pairs that occur twice.
    Where nothing can be written it is not kept, which is told. Raises OSError where the disk is full, ValueError for no
    captions or a vocabulary that cannot hold the 256 bytes and the special tokens.
    """
    if not captions:
        raise ValueError("The tokenizer needs captions to train on; the training split has none.")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"VOCAB_SIZE = {vocab_size} must be at least {smallest}: 256 bytes and 4 special tokens.")
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[UNK]))
    # A prefix space gives the first word of a caption the same token as that word elsewhere; decode() removes it.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    # For AutoTokenizer, which then gives the same ids as encode().
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_with_space(caption) for caption in captions), trainer)

    try:
        _write(tokenizer, Path(folder), _digests(captions, vocab_size, tokenizer))
    except OSError as error:
        if not read_only(error):
            raise
        print(f"Not kept: {folder} cannot be written ({error.strerror}); the tokenizer is trained anew by each run and "
              "stands in its checkpoints. CACHE_DIR names another place.")  # fmt: skip
    return tokenizer


def _write(tokenizer: Tokenizer, folder: Path, digests: dict[str, str]) -> None:
    """Its files, each whole or not at all; several processes may write the same."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "digest.json").unlink(missing_ok=True)  # written last: without it the folder counts as unfinished
    write_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    with beside(folder / "model") as made:
        made.mkdir()
        try:
            tokenizer.model.save(str(made))  # vocab.json and merges.txt
        except Exception as error:  # the library raises bare Exception
            number = re.search(r"\(os error (\d+)\)", str(error))
            raise OSError(int(number[1]) if number else 0, str(error), str(folder)) from error
        for path in made.iterdir():
            os.replace(path, folder / path.name)
    write_file(folder / "tokenizer_config.json", json.dumps(FOR_TRANSFORMERS, indent=1).encode())
    write_file(folder / "digest.json", json.dumps(digests, indent=1).encode())


def load_or_train(captions: Sequence[str], folder: Path | str, vocab_size: int) -> tuple[Tokenizer, bool]:
    """The tokenizer in `folder`, trained anew where a file is missing, altered, or the captions or the size changed.

    Returns (tokenizer, whether it was trained now).
    """
    folder = Path(folder)
    if all((folder / name).is_file() for name in _FILES):
        try:
            digests = json.loads((folder / "digest.json").read_text(encoding="utf-8"))
            tokenizer = tokenizer_from_json((folder / "tokenizer.json").read_text(encoding="utf-8"), str(folder))
            if digests == _digests(captions, vocab_size, tokenizer):
                return tokenizer, False
        except ValueError:
            pass  # a damaged file is the same as a missing one: it is made again from the captions
    return train_tokenizer(captions, folder, vocab_size), True


def tokenizer_from_json(text: str, origin: str = "the checkpoint") -> Tokenizer:
    """The tokenizer from the text of a tokenizer.json, checked. Raises ValueError naming `origin`.

    Whoever wrote it may be anybody: only the parts that `train_tokenizer` makes are handed to the library, whose others
    run expressions or write texts of their own.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"The tokenizer of {origin} has {len(text):,} characters, and {MAX_BYTES:,} are read at most.")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The tokenizer of {origin} cannot be read: {error}") from error
    if odd := _odd_part(about):
        raise ValueError(f"The tokenizer of {origin} cannot be read: {odd}, only byte-level BPE as nanoCaption trains "
                         "it is.")  # fmt: skip
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"The tokenizer of {origin} cannot be read: {error}") from error
    check_tokenizer(tokenizer, origin)
    return tokenizer


def _odd_part(about: object) -> str | None:
    """What in the content of a tokenizer.json `train_tokenizer` never makes; None where there is nothing."""
    if not isinstance(about, dict):
        return "it holds no tokenizer"
    for name, kinds in _PARTS.items():
        part = about.get(name)
        kind = part.get("type") if isinstance(part, dict) else part
        if kind not in kinds:
            return f"its {name} is {str(kind)[:40]!r}"
    model = about["model"]
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name) not in (None, ""):
            return f"its {name} is {str(model[name])[:40]!r}"
    vocabulary, added = model.get("vocab"), about.get("added_tokens")
    if not isinstance(vocabulary, dict) or not isinstance(added, list) or len(added) > len(SPECIAL_TOKENS):
        return "its vocabulary or its added tokens are not whole"
    if sorted(filter(lambda number: type(number) is int, vocabulary.values())) != list(range(len(vocabulary))):
        return "its ids are not those from 0 on, each once"
    return "it has a token that no caption has" if max(map(len, vocabulary), default=0) > MAX_TOKEN else None


def check_tokenizer(tokenizer: Tokenizer, origin: str = "the tokenizer") -> None:
    """Prove ids, round trip and <end>, before any training relies on them. Raises ValueError saying what is wrong."""
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    if ids != [PAD, START, END, UNK]:
        raise ValueError(f"{origin}: {SPECIAL_TOKENS} have the ids {ids}, must be 0, 1, 2, 3.")
    for text in ("A dog.", "  two  spaces ", "naïve café — 東京 🐕\tüß\n", "<end> of <pad> the pier", ""):
        back = text_of(tokenizer, encode(tokenizer, text, max_length=1000))
        if back != text:
            raise ValueError(f"{origin}: {text!r} comes back as {back!r}; the round trip must lose nothing.")
    cut = encode(tokenizer, "a long caption about a dog", max_length=4)
    if len(cut) != 4 or cut[0] != START or END in cut:
        raise ValueError(f"{origin}: a cut caption gives {cut}, must be <start> and three tokens of its text.")


def encode(tokenizer: Tokenizer, caption: str, max_length: int) -> list[int]:
    """`caption` as [<start>, ..., <end>], at most `max_length` ids.

    A longer caption is cut behind a whole character and has no <end>: nothing ends there.
    """
    return encode_batch(tokenizer, [caption], max_length)[0]


def encode_batch(
    tokenizer: Tokenizer, captions: Sequence[str], max_length: int, encoding: int = ENCODING
) -> list[list[int]]:
    """`encode` for many captions at once, in order. encoding: that of a run that was begun with an earlier one."""
    # The text "<end>" in a caption is text: encode_special_tokens keeps it from becoming the control token.
    tokenizer.encode_special_tokens = True
    encodings = tokenizer.encode_batch_fast([_with_space(caption) for caption in captions], add_special_tokens=False)
    found = [one.ids for one in encodings]
    if encoding == 1:
        return [[START, *ids[: max_length - 2], END] for ids in found]
    return [[START, *ids, END] if len(ids) <= max_length - 2 else
            [START, *whole_characters(tokenizer, ids[: max_length - 1])] for ids in found]  # fmt: skip


def whole_characters(tokenizer: Tokenizer, ids: Sequence[int]) -> Sequence[int]:
    """`ids`, the first ones of a text's, without the last of them where these only begin a character."""
    while not _is_utf8(_bytes_of(tokenizer, ids)):
        ids = ids[:-1]
    return ids


def cut_lengths(
    tokenizer: Tokenizer, captions: Sequence[str], rows: Sequence[Sequence[int]], max_length: int
) -> list[int]:
    """How many ids each caption would have that is cut in `rows`, what `encode_batch` made of them."""
    perhaps = [text for text, ids in zip(captions, rows, strict=True) if ids[-1] != END or len(ids) == max_length]
    tokenizer.encode_special_tokens = True
    encodings = tokenizer.encode_batch_fast([_with_space(text) for text in perhaps], add_special_tokens=False)
    return [length for one in encodings if (length := len(one.ids) + 2) > max_length]


def text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`, up to the first <end>; <start>, <pad> and bytes that make no whole character are left out."""
    return read_text(tokenizer, ids)[0]


def read_text(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, bool]:
    """(`text_of`, whether bytes had to be left out: the ids end within a character, or are no UTF-8)"""
    ids = list(ids)
    if END in ids:
        ids = ids[: ids.index(END)]
    ids = [i for i in ids if i > UNK]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    broken = False
    if "\ufffd" in text:  # the decoder's mark for such bytes; a text may hold one of its own
        data = _bytes_of(tokenizer, ids)
        text, broken = data.decode(errors="ignore"), not _is_utf8(data)
    return text[1:] if text.startswith(" ") else text, broken


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token, none of the special ones, stands for in a text."""
    return bytes(_BYTE_OF[letter] for letter in tokenizer.id_to_token(token) or "")


def _bytes_of(tokenizer: Tokenizer, ids: Sequence[int]) -> bytes:
    return b"".join(token_bytes(tokenizer, token) for token in ids)


def _is_utf8(data: bytes) -> bool:
    return data.decode(errors="ignore").encode() == data


def _byte_letters() -> dict[str, int]:
    """The letter by which a byte-level BPE writes each byte: its own where it can be seen, else one above 255."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return {chr(byte): byte for byte in seen} | {
        chr(0x100 + number): byte for number, byte in enumerate(sorted(set(range(0x100)) - set(seen)))
    }


_BYTE_OF = _byte_letters()


def _digests(captions: Sequence[str], vocab_size: int, tokenizer: Tokenizer) -> dict[str, str]:
    """What digest.json holds: what the tokenizer was trained on, and what came out."""
    return {"captions": captions_digest(captions, vocab_size), "tokenizer": tokenizer_digest(tokenizer)}


def captions_digest(captions: Sequence[str], vocab_size: int) -> str:
    """sha256 over the captions, in order, and the vocabulary size."""
    digest = hashlib.sha256(f"{vocab_size}\n".encode())
    for caption in captions:
        digest.update(json.dumps(caption).encode() + b"\n")
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """sha256 of the tokenizer's canonical JSON; two tokenizers with the same digest give the same ids."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def _with_space(caption: str) -> str:
    try:
        caption.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, as a damaged JSON escape gives
        raise ValueError(f"The caption {ascii(caption)} is not Unicode text: {error.reason}.") from error
    # add_prefix_space alone would skip a caption that begins with a space, and decode() would then eat that space.
    return " " + caption
