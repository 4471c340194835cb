"""`nanocaption caption --shards`: one parquet of captions a shard, equal to captions of the files one by one."""

import fcntl
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import parquet

from nanocaption.commands import caption
from nanocaption.data import shards as packed_shards
from nanocaption.prepare import shard_pictures
from nanocaption.use import shards
from tests import hub_files, shard_sets
from tests.shard_sets import Sample, add, write_parquets, write_tar


@pytest.fixture(scope="module")
def model(tiny_run_made) -> list[str]:
    return ["--checkpoint", str(tiny_run_made / "last.safetensors"), "--eval-batch-size", "4"]


@pytest.fixture(scope="module")
def pictures(demo_data) -> list[Path]:
    return sorted((demo_data / "demo" / "images").iterdir())[:10]


def its(pictures: list[Path]) -> list[Sample]:
    return [Sample(path.stem, path.read_bytes(), None) for path in pictures]


def rows(path: Path) -> list[dict]:
    return parquet.read_table(path).to_pylist()


def of_shards(model: list[str], where: Path | str, output: Path, *flags: str, code: int = 0) -> None:
    assert caption.main(["--shards", str(where), "--output", str(output), *model, *flags]) == code


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_captions_are_those_of_the_files_one_by_one(kind, model, pictures, tmp_path, capsys):
    shard_sets.WRITERS[kind](tmp_path / "in", its(pictures), 10)
    files = [tmp_path / "in" / f"{path.stem}.jpg" for path in pictures]  # what is drawn depends on the name
    for file, path in zip(files, pictures, strict=True):
        file.write_bytes(path.read_bytes())
    for how in (["--num-captions", "2"], ["--num-captions", "2", "--sample"]):
        capsys.readouterr()
        assert caption.main([*map(str, files), *model, *how, "--json"]) == 0
        alone = json.loads(capsys.readouterr().out)
        of_shards(model, tmp_path / "in", tmp_path / "out", *how, "--force")
        found = rows(tmp_path / "out" / "00000.parquet")
        assert [row["key"] for row in found] == [path.stem + ".jpg" * (kind == "parquet") for path in pictures]
        for row, one in zip(found, alone, strict=True):
            three = ("caption", "log_prob", "score")
            assert [row[name] for name in three] == [one["captions"][0][name] for name in three]
            assert [row[f"{name}s"] for name in three] == [[each[name] for each in one["captions"]] for name in three]
    of_shards(model, tmp_path / "in", tmp_path / "out", "--beam-size", "1", "--force")
    greedy = rows(tmp_path / "out" / "00000.parquet")  # the control: other options give other numbers
    assert "captions" not in greedy[0] and [row["score"] for row in greedy] != [row["score"] for row in found]


def test_what_has_no_caption_is_in_the_output_and_told(model, pictures, tmp_path, capsys):
    good = [path.read_bytes() for path in pictures]
    shard = write_tar(tmp_path / "in" / "a.tar", its(pictures[:2]), {
        "bad.jpg": b"no picture", "empty.png": b"", "odd é\n2.150.jpg": good[2], "./sub/x.JPEG": good[3], "a.txt": b"a",
    })  # fmt: skip
    with tarfile.open(shard, "a") as tar:
        add(tar, f"{pictures[0].stem}.jpg", good[4])
        add(tar, os.fsdecode(b"\xff\xfe.jpg"), good[5])
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    write_tar(tmp_path / "in" / "b.tar", [], {"a.txt": b"no pictures here"})
    of_shards(model, tmp_path / "in" / "{a,b}.tar", tmp_path / "out")
    assert rows(tmp_path / "out" / "b.parquet") == []
    found = rows(tmp_path / "out" / "a.parquet")
    first, second = (path.stem for path in pictures[:2])
    odd = ["odd é\n2.150", "sub/x", first, "\\udcff\\udcfe", "link"]
    assert [row["key"] for row in found] == [first, second, "bad", "empty", *odd]
    assert [row["row"] for row in found] == [*range(9)]
    assert [row["error"] for row in found if row["caption"] is None] == [
        "not a picture: no format that is read here", "empty file", "no regular file: a link or a device"]  # fmt: skip
    assert all((row["caption"] is None) == (row["log_prob"] is None) == (row["error"] is not None) for row in found)
    told = capsys.readouterr().out
    assert "2 shards captioned, 9 pictures" in told and "3 pictures without caption" in told
    assert "1 not a picture, 1 empty file, 1 no regular file" in told and "bad.jpg in" in told
    assert "1 picture with a name that the shard had before" in told and "1 shard (b.tar) without any picture" in told


def test_cells_without_a_picture_and_files_without_names(model, pictures, tmp_path):
    import pyarrow

    (tmp_path / "in").mkdir()
    cells = [pictures[0].read_bytes(), None, b"no picture", pictures[1].read_bytes()]
    for number, columns in enumerate([{"jpg": cells}, {"jpg": cells, "key": [7, None, "x", 9]}]):
        columns = {name: list(map(str, its)) if name == "key" else its for name, its in columns.items()}
        parquet.write_table(pyarrow.table(columns), tmp_path / "in" / f"{number}.parquet", row_group_size=3)
    of_shards(model, tmp_path / "in", tmp_path / "out")
    unnamed, named = (rows(tmp_path / "out" / f"{number}.parquet") for number in (0, 1))
    assert [row["key"] for row in unnamed] == ["0", "1", "2", "3"]
    assert [row["key"] for row in named] == ["7", "None", "x", "9"]
    why = "not a picture: no format that is read here"
    assert [row["error"] for row in named] == [None, "the row has no picture", why, None]
    assert [row["score"] for row in named] == [row["score"] for row in unnamed]


def test_what_is_done_is_skipped_and_what_others_made_is_refused(model, tiny_run_made, pictures, tmp_path, capsys):
    write_tar(tmp_path / "in" / "a.tar", its(pictures[:3]))
    output = tmp_path / "out" / "a.parquet"
    of_shards(model, tmp_path / "in", tmp_path / "out")
    before = output.stat()
    capsys.readouterr()
    of_shards(model, tmp_path / "in", tmp_path / "out")
    assert os.path.samestat(before, output.stat()) and "1 shard done before: 3 pictures" in capsys.readouterr().out
    (other,) = tiny_run_made.glob("checkpoint_epoch_1_*")
    for flags, why in ((["--checkpoint", str(other)], "checkpoint .* there, .* now"),
                       (["--beam-size", "2"], "beam 3 "), (["--num-captions", "2"], "captions 1 ")):  # fmt: skip
        with pytest.raises(SystemExit, match=f"1 file \\(a.parquet: .*{why}"):
            of_shards(model, tmp_path / "in", tmp_path / "out", *flags)
    assert os.path.samestat(before, output.stat())
    of_shards(model, tmp_path / "in", tmp_path / "out", "--beam-size", "2", "--force")
    assert not os.path.samestat(before, output.stat())
    write_tar(tmp_path / "in" / "a.tar", its(pictures[3:6]))
    with pytest.raises(SystemExit, match="time .* there"):
        of_shards(model, tmp_path / "in", tmp_path / "out", "--beam-size", "2")
    output.write_bytes(b"somebody's notes")
    with pytest.raises(SystemExit, match="no captions of shards, or damaged"):
        of_shards(model, tmp_path / "in", tmp_path / "out")
    assert output.read_bytes() == b"somebody's notes"


def test_no_shard_is_overwritten(model, pictures, tmp_path):
    write_parquets(tmp_path / "in", its(pictures[:3]), 3)
    before = (tmp_path / "in" / "00000.parquet").read_bytes()
    with pytest.raises(SystemExit, match="is one of the shards"):
        of_shards(model, tmp_path / "in", tmp_path / "in" / "." , "--force")
    assert (tmp_path / "in" / "00000.parquet").read_bytes() == before


def test_a_damaged_shard_is_told_and_the_others_are_done(model, pictures, tmp_path, capsys):
    shard_sets.write_tars(tmp_path / "in", its(pictures), 4)
    whole = (tmp_path / "in" / "00001.tar").read_bytes()
    (tmp_path / "in" / "00001.tar").write_bytes(whole[: len(whole) // 3])
    of_shards(model, tmp_path / "in", tmp_path / "out", code=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000.parquet", "00002.parquet"]
    out, err = capsys.readouterr()
    assert "00001.tar is damaged" in err and "1 shard (00001.tar) not read" in out
    (tmp_path / "in" / "00001.tar").write_bytes(whole)  # fetched again
    of_shards(model, tmp_path / "in", tmp_path / "out")
    assert len(rows(tmp_path / "out" / "00001.parquet")) == 4


def test_a_disk_that_fails_makes_no_broken_picture(model, pictures, tmp_path, monkeypatch):
    write_tar(tmp_path / "in" / "a.tar", its(pictures[:3]))

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(packed_shards.os, "pread", fail)
    of_shards(model, tmp_path / "in", tmp_path / "out", code=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_parts_make_what_one_makes(model, pictures, tmp_path):
    shard_sets.write_tars(tmp_path / "in", its(pictures), 2)
    of_shards(model, tmp_path / "in", tmp_path / "one")
    for part in ("2/3", "1/3", "3/3"):
        of_shards(model, tmp_path / "in", tmp_path / "parts", "--part", part)
        if part == "2/3":  # the control: a part is not all
            assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["00001.parquet", "00004.parquet"]
    names = [f"{number:05}.parquet" for number in range(5)]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == names
    assert [(tmp_path / "parts" / name).read_bytes() for name in names] == [
        (tmp_path / "one" / name).read_bytes() for name in names]  # fmt: skip


def test_a_shard_that_another_process_is_at_is_left_to_it(model, pictures, tmp_path, capsys):
    write_tar(tmp_path / "in" / "a.tar", its(pictures[:3]))
    (tmp_path / "out").mkdir()
    made = tmp_path / "out" / ".a.parquet.0.tmp"
    with made.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"half")
        file.flush()
        of_shards(model, tmp_path / "in", tmp_path / "out", code=1)
        assert "1 shard (a.tar) left to another process" in capsys.readouterr().out and made.read_bytes() == b"half"
    of_shards(model, tmp_path / "in", tmp_path / "out")  # it was killed: what it left is taken over
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.parquet"]


def test_few_pictures_are_in_memory(monkeypatch):
    """However long a shard is: at most the batch that is captioned and the next."""
    seen, most = 0, 0

    def listed(shard: Path) -> Iterator[shard_pictures.Entry]:
        nonlocal seen
        for row in range(100):
            seen += 1
            picture = packed_shards.Packed(f"{row}.jpg", str(shard), 0, 0, 1)
            yield shard_pictures.Entry(str(row), row, picture, "not to be read", 0.0)

    class Settings:
        EVAL_BATCH_SIZE, NUM_WORKERS = 8, 2

    class Loaded:
        class Model:
            image_spec = None

        models, settings = [Model], Settings

    monkeypatch.setattr(shards, "pictures_of", listed)
    taken = 0
    for batch in shards.read_ahead(Path("a.tar"), Loaded):
        most = max(most, seen - taken)
        taken += len(batch)
    assert taken == 100 and 8 < most <= 16


def test_mistakes_are_told_before_any_work(tmp_path):
    for argv, why in {
        (): "Name pictures or folders", ("--part", "1/2", "a.jpg"): "add --shards", ("--force", "a.jpg"): "is for --sh",
        ("--shards", "x", "a.jpg", "--output", "o"): "leave a.jpg out", ("--shards", "x"): "needs --output FOLDER",
        ("--shards", "x", "--output", "o", "--json"): "shards give parquet",
        ("--shards", "x", "--output", "o", "--attention", "a.png"): "draws one picture",
        ("--shards", "x", "--output", "o", "--part", "0/4"): "K from 1 to N", ("--shards", "x", "--output", "o",
        "--part", "5/4"): "K from 1 to N", ("--shards", "x", "--output", __file__): "is no folder",
    }.items():  # fmt: skip
        with pytest.raises(SystemExit, match=why):
            caption.main([*argv])
    for where in (tmp_path, tmp_path / "{0..3}.tar", tmp_path / "*.tar"):
        with pytest.raises(ValueError, match=f"--shards '{tmp_path}.*leads to no shard. --shards takes"):
            caption.main(["--shards", str(where), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_on_a_server_give_what_they_give_here(kind, model, pictures, tmp_path, monkeypatch, capsys):
    shard_sets.WRITERS[kind](tmp_path / "in", its(pictures), 5)
    hub = hub_files.Hub(f"owner/{kind}s", {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()})
    of_shards(model, tmp_path / "in", tmp_path / "here")
    with hub_files.serve(hub):
        hub_files.turn_to(monkeypatch, hub.url, tmp_path / "cache")
        plain, of_hub = f"{hub.keeper_url}/kept/0000{{0..1}}.{kind}", f"hf://datasets/owner/{kind}s/*.{kind}"
        for where, name in ((plain, "http"), (of_hub, "hf")):
            of_shards(model, where, tmp_path / name)
            of_shards(model, where, tmp_path / name)
            assert "2 shards done before" in capsys.readouterr().out
            for number in range(2):
                file = f"0000{number}.parquet"
                assert rows(tmp_path / name / file) == rows(tmp_path / "here" / file)
