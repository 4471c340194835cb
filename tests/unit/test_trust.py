"""What strangers hand over is bounded before it decides anything; each test reaches a guard of ours, and nothing more.

docs/trust.md has the promises. Damaged input at random: test_fuzz.py. Pictures: data/test_picture_memory.py.
"""

import io
import json
import os
import resource
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanocaption.data import caption_text, parquet, tokenizer
from nanocaption.metrics import files, ptb
from nanocaption.model import captioner, encoder, exported
from nanocaption.model.captioner import assemble
from nanocaption.prepare import archives, caption_files, caption_json, packed, sidecars, tars
from tests import fuzz

MEBI = 2**20


def within(most: int, call: Callable[[], object]) -> str:
    """What `call` raises, in a process of its own that may take `most` bytes more than it has; "" for nothing."""
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + most,) * 2)
        told = ""
        try:
            call()
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(ends[1], told.encode()[:4000])
        os._exit(0)
    os.close(ends[1])
    with os.fdopen(ends[0]) as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return told


def is_linear(call: Callable[[int], object], size: int) -> bool:
    """Whether eight times as much takes at most some twenty times as long; by the square it would be 64."""

    def best(times: int) -> float:
        found = []
        for _ in range(3):
            begin = time.process_time()
            call(times)
            found.append(time.process_time() - begin)
        return min(found)

    call(10)
    return best(8 * size) < 20 * max(best(size), 1e-3)


# --- Models ---


@pytest.fixture(scope="module")
def state() -> dict:
    return fuzz.small_state()


@pytest.mark.parametrize(
    "changed",
    [{"DECODER_EMBED_DIM": 2**20}, {"DECODER_FF_DIM": 2**22}, {"VIT_EMBED_DIM": 2**18, "VIT_HEADS": 1},
     {"MAX_SEQ_LEN": 2**20}],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_sizes_are_compared_before_anything_of_them_is_made(state, changed):
    told = within(200 * MEBI, lambda: assemble(state | {"config": state["config"] | changed}))
    assert told.startswith("ValueError: The checkpoint does not fit the model") and "must be" in told


def test_the_control_made_first_such_a_model_takes_gigabytes(state):
    config = state["config"] | {"DECODER_EMBED_DIM": 2**20}
    told = within(200 * MEBI, lambda: captioner.build_model(config, 270, None))
    assert "memory" in told.lower()
    assert assemble(state).decoder.max_seq_len == 8  # and one of its own sizes is made


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"DECODER_LAYERS": 500}, "must be a whole number from 1 to"), ({"VIT_LAYERS": 10**9}, "must be a whole"),
        ({"BEAM_SIZE": 10**9}, "from 1 to 100"), ({"LENGTH_PENALTY": 1e308}, "from 0 to 10"),
        ({"IMAGE_SIZE": 10**6}, "from 1 to 8,192"), ({"DECODER_HEADS": 3}, "must be a multiple of DECODER_HEADS"),
        ({"ENCODER_MODEL_NAME": "some/tower"}, "does not describe it"), ({"UNK_TOKEN_ID": 9}, "must be 0, 1, 2, 3"),
        ({"MAX_SEQ_LEN": True}, "MAX_SEQ_LEN = True"), ({"DECODER_DROPOUT": "much"}, "from 0 to 1"),
    ],
)  # fmt: skip
def test_numbers_of_a_model_are_bounded_and_named(state, changed, told):
    with pytest.raises(ValueError, match=told) as caught:
        assemble(state | {"config": state["config"] | changed})
    assert "\n" not in str(caught.value)


def test_a_folder_that_names_a_tower_and_describes_none_asks_nobody(state, tmp_path, monkeypatch):
    exported.write(tmp_path / "e", state, "# a card\n")
    about = json.loads((tmp_path / "e" / "config.json").read_text())
    about["settings"]["ENCODER_MODEL_NAME"] = "some/tower"
    (tmp_path / "e" / "config.json").write_text(json.dumps(about))
    asked = []
    monkeypatch.setattr(encoder, "load_pretrained", lambda *given: asked.append(given))
    with pytest.raises(ValueError, match="does not describe it"):
        assemble(exported.read(tmp_path / "e"))
    assert asked == []
    monkeypatch.setattr(encoder, "load_pretrained", lambda *given: 1 / 0)  # the control: without weights it is loaded
    with pytest.raises(ZeroDivisionError):
        captioner.build_model(state["config"] | {"ENCODER_MODEL_NAME": "some/tower"}, 270)


def test_a_tower_of_absurd_depth_or_with_counts_of_things_it_has_not_is_refused_or_not_told_of_them():
    about = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 10**6, "num_attention_heads": 2}
    spec = {"size": 16, "resize": 16, "crop": False, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    with pytest.raises(ValueError, match="num_hidden_layers of its encoder = 1000000"):
        captioner.bounds.check_tower({"encoder_config": about, "image_spec": spec}, 50)
    with pytest.raises(ValueError, match="a side of image_spec"):
        captioner.bounds.check_tower({"encoder_config": about | {"num_hidden_layers": 1},
                                      "image_spec": spec | {"size": 10**6}}, 50)  # fmt: skip
    small = {"num_hidden_layers": 1, "intermediate_size": 8, "image_size": 16, "patch_size": 8, "num_labels": 7}
    with torch.device("meta"):
        made = encoder.rebuild_pretrained(about | small)
    assert made.tower.config.num_labels == 2  # nothing but what a tower is made of reaches the library


@pytest.mark.parametrize(
    ("part", "value"),
    [("normalizer", {"type": "Lowercase"}), ("decoder", {"type": "Fuse"}), ("pre_tokenizer", None),
     ("model", {"type": "WordLevel"})],
)  # fmt: skip
def test_only_the_parts_of_our_own_tokenizers_are_handed_to_the_library(state, part, value):
    about = json.loads(state["tokenizer"]) | {part: value}
    with pytest.raises(ValueError, match="only byte-level BPE as nanoCaption trains it is"):
        tokenizer.tokenizer_from_json(json.dumps(about))
    with pytest.raises(ValueError, match="are read at most"):
        tokenizer.tokenizer_from_json(" " * (tokenizer.MAX_BYTES + 1))
    assert tokenizer.tokenizer_from_json(state["tokenizer"]).get_vocab_size()  # the control


# --- Packed files ---


def write_parquet(path: Path, cells: list[bytes], **options: object) -> Path:
    pyarrow, writer = parquet.import_pyarrow()
    names = [f"{number}.jpg" for number in range(len(cells))]
    table = {"image": pyarrow.array(cells, pyarrow.binary()), "caption": ["a dog"] * len(cells), "file_name": names}
    writer.write_table(pyarrow.table(table), path, compression="zstd", **options)
    return path


def test_a_parquet_file_that_stands_for_far_more_than_it_is_is_refused(tmp_path):
    empty = write_parquet(tmp_path / "a.parquet", [bytes(80 * MEBI)], use_dictionary=False)
    again = write_parquet(tmp_path / "b.parquet", [bytes(4 * MEBI)] * 60, dictionary_pagesize_limit=2**30)
    for path, told in ((empty, "unpacks from"), (again, "come again and again")):
        assert path.stat().st_size < MEBI
        with pytest.raises(ValueError, match=f"{told}.*more than 100 times the file: refused"):
            list(packed.parquet_rows(path, packed.parquet_columns(path), "x", pictures=True))
    pictures = [os.urandom(30_000) for _ in range(60)]  # the control, with pictures that come again as well
    some = write_parquet(tmp_path / "c.parquet", pictures * 5)
    rows = packed.parquet_rows(some, packed.parquet_columns(some), "x", pictures=True)
    assert [row.data for row in rows] == pictures * 5


def test_batches_are_as_small_as_the_largest_cell_asks(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [os.urandom(10_000) for _ in range(40)])
    for most, rows in ((2**29, 32), (10**6, 2), (10, 1)):
        monkeypatch.setattr(parquet, "BATCH_BYTES", most)
        with parquet.open_parquet(path) as file:
            assert max(batch.num_rows for batch in parquet.batches(file, path, ["image"])) == rows


def tar_of(path: Path, members: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w", **options) as made:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return path


def test_a_long_header_of_a_tar_is_refused_and_large_pictures_are_read(tmp_path):
    long = tar_of(tmp_path / "a.tar", {"a.jpg": b"x"}, pax_headers={"comment": "x" * 70_000})
    with pytest.raises(ValueError, match="a header of 70"):
        list(archives.entries(long))
    large = tar_of(tmp_path / "b.tar", {"a.jpg": os.urandom(3 * MEBI), "a.txt": b"a dog"})
    found = archives.checked(large, lambda name: True)
    archives.unpack(large, found, (tmp_path / "out").joinpath)
    assert (tmp_path / "out" / "a.jpg").stat().st_size == 3 * MEBI


def test_a_packed_tar_that_unpacks_to_far_more_is_left_when_it_is_looked_at(tmp_path):
    small = tar_of(tmp_path / "a.tar.gz", {"a.txt": b"", "b.bin": bytes(101 * MEBI), "c.jpg": b""})
    with pytest.raises(ValueError, match="more than 100 times the file: refused"):
        tars.is_webdataset(small)
    assert tars.is_webdataset(tar_of(tmp_path / "b.tar.gz", {"a.txt": b"a", "b.bin": bytes(MEBI), "a.jpg": b"x"}))


# --- Linear in the bytes ---


@pytest.mark.parametrize("text", ["a&", "&am", "x=", "a-b.", "\u2e80", "<a b", "=", "a.b@"])
def test_a_text_without_spaces_is_tokenised_in_linear_time(text, monkeypatch):
    def tokenise(times: int) -> None:
        ptb.clear_cache()
        ptb.ptb_tokenize([text * times])

    assert is_linear(tokenise, 4000 // len(text))


def test_the_control_without_a_longest_token_it_is_not(monkeypatch):
    monkeypatch.setattr(ptb, "LONGEST_TOKEN", 10**9)

    def tokenise(times: int) -> None:
        ptb.clear_cache()
        ptb.ptb_tokenize(["a&" * times])

    assert not is_linear(tokenise, 500)


def test_a_token_as_long_as_any_word_is_one_token():
    assert ptb.ptb_tokenize(["x" * 900 + " b"]) == ["x" * 900 + " b"]


def test_what_is_escaped_again_and_again_becomes_text_in_linear_time(monkeypatch):
    assert caption_text.normalise("a &amp;amp;amp;lt; b &amp;quot;") == 'a < b "'
    assert is_linear(lambda times: caption_text.normalise("&" + "amp;" * times), 500)
    monkeypatch.setattr(caption_text, "_AMPERSANDS", caption_text.re.compile("(?!)"))  # the control
    assert not is_linear(lambda times: caption_text.normalise("&" + "amp;" * times), 150)


def test_readers_of_captions_take_linear_time(tmp_path):
    def doubled(times: int) -> None:
        path = tmp_path / "a.json"
        path.write_text("{" + ",".join(f'"{number}.jpg": "a dog"' for number in [*range(times), 0]) + "}")
        with pytest.raises(ValueError, match="twice"):
            files.read_predictions(path)

    def of_one_picture(times: int) -> None:
        entries = [{"image_id": "a", "caption_str": f"a dog {number}"} for number in range(times)]
        caption_json.textcaps_rows({"data": entries}, tmp_path)

    def of_one_name(times: int) -> None:
        packed.qualified([packed.Content("s", "a.jpg", f"{number:064}", None) for number in range(times)])

    def one_text(times: int) -> None:
        sidecars.captions_of_lines({("", "a"): ["A dog\n" + "runs and\n" * times]})

    def spaces(times: int) -> None:
        assert caption_files._between_bars("a" + " " * times + "b") is None
        assert caption_files._before_tab(" " * times) is None
        assert caption_files._with_second_bar("a|" + " " * times + "1" + " " * times)

    for call, size in ((doubled, 2000), (of_one_picture, 2000), (of_one_name, 1000), (one_text, 2000), (spaces, 2000)):
        assert is_linear(call, size), call.__name__


def test_a_folder_named_after_a_split_with_many_digits_is_told_at_once():
    assert caption_files.split_of_path(f"train{'1' * 60}x/a.csv") is None  # by trying all divisions: for ever
    assert caption_files.split_of_path("train2014-1-22/a.csv") == "train"


def test_deep_lists_in_cells_and_files_are_refused_in_one_line(tmp_path):
    deep = "[" * 400 + "'a'" + "]" * 400
    assert caption_files.read_cell(deep)[0] in ("broken", "bracketed")
    assert caption_files.read_cell("['a', 'b']") == ("list", ["a", "b"])
    path = tmp_path / "a.json"
    path.write_text('{"train":' * 400 + '{"a.jpg": "a"}' + "}" * 400)
    with pytest.raises(ValueError, match="nested too deep|not in Karpathy's layout"):
        caption_json.read_json(path)


def test_a_file_is_not_read_beyond_what_is_allowed(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # a hole
    for read in (caption_files.read_text, files.read_json, caption_json.read_json):
        assert within(200 * MEBI, lambda read=read: read(path)).startswith("ValueError")
