"""The first pass over shards: which are meant, what is counted and left out, what is kept, what has changed since."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from nanocaption.base.settings import load_settings
from nanocaption.data import shards
from nanocaption.data.prepared import is_whole, load_records, verify
from nanocaption.data.shard_index import Index, paths_of
from nanocaption.data.shards import read_bytes
from nanocaption.prepare import check, streamed
from nanocaption.prepare.check import Rules
from nanocaption.prepare.make import look_first, prepare, prepare_from
from nanocaption.score.split import load_split
from tests.raw_sets import listing, make_raw
from tests.shard_sets import WRITERS, Sample, jpeg, samples, write_parquets, write_tar, write_tars


def made(tmp_path: Path, raw: Path | str, name: str = "mine", **more) -> Path:
    return prepare(name, tmp_path, raw_dir=Path(raw), stream=str(raw), **more)


def captions_of(folder: Path) -> dict[str, dict]:
    return {r["file_name"]: r for r in json.loads((folder / "captions.json").read_text())["images"]}


# --- which shards are meant ---


@pytest.mark.parametrize(("pattern", "names"), [
    ("a/{00..02}.tar", ["a/00.tar", "a/01.tar", "a/02.tar"]),
    ("a/{8..11}.tar", ["a/8.tar", "a/9.tar", "a/10.tar", "a/11.tar"]),
    ("a/{08..11}.tar", ["a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar"]),
    ("{a,b}/{1..2}.tar", ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]),
    ("a/x.tar", ["a/x.tar"]),
])  # fmt: skip
def test_braces_are_those_of_a_shell(pattern, names):
    assert streamed.braces(pattern) == names


def test_ranges_globs_folders_and_lists_mean_the_same_shards(tmp_path):
    raw = write_tars(tmp_path / "raw", samples(12), 3)
    all_of_them = [str(raw / f"0000{number}.tar") for number in range(4)]
    for where in (f"{raw}/{{00000..00003}}.tar", f"{raw}/*.tar", f"{raw}", ",".join(all_of_them),
                  f"{raw}/{{00000,00001}}.tar, {raw}/0000[23].tar", f"{raw},{raw}/00002.tar"):  # fmt: skip
        assert streamed.expanded(where) == all_of_them, where
    assert streamed.expanded(f"{raw}/00001.tar") == all_of_them[1:2]


def test_relative_patterns_are_kept_as_whole_paths(tmp_path, monkeypatch):
    write_tars(tmp_path / "raw", samples(12), 12)
    monkeypatch.chdir(tmp_path)
    folder = made(tmp_path, "raw/*.tar")
    monkeypatch.chdir("/")
    assert read_bytes(Index(folder).picture(0)) == jpeg(0)


def gzipped(folder: Path) -> Path:
    write_tar(folder / "a.tar", samples(3))
    (folder / "a.tar.gz").write_bytes(gzip.compress((folder / "a.tar").read_bytes()))
    (folder / "a.tar").unlink()
    return folder


REFUSED = {
    "missing": (lambda raw: f"{write_tars(raw, samples(6), 3)}/{{00000..00007}}.tar", "00002.tar leads to no shard"),
    "pictures and a table": (lambda raw: make_raw(raw), "leads to no shard.*STREAM = False"),
    "nothing there": (lambda raw: raw, "leads to no shard"),
    "compressed": (gzipped, "compressed as a whole.*gunzip"),
    "both kinds": (lambda raw: write_tars(write_parquets(raw, samples(6), 6), samples(6), 6), "those of one kind"),
    "zip": (lambda raw: make_raw(raw) / "dataset_flickr30k.json", "no .tar and no .parquet"),
    "no texts": (lambda raw: write_tar(raw / "a.tar", [s._replace(captions=None) for s in samples(3)]),
                 "without pairs of name.jpg and name.txt"),
    "backwards": (lambda raw: f"{raw}/{{00007..00002}}.tar", "is no range"),
    "hub": (lambda raw: "hf://dataset/a.tar", "write hf://datasets/OWNER/NAME/PATH"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_streamed_is_refused_in_one_line(tmp_path, case):
    make, told = REFUSED[case]
    where = make(tmp_path / "raw")
    with pytest.raises(ValueError, match=told) as error:
        made(tmp_path, where)
    assert "\n" not in str(error.value) and not (tmp_path / "mine" / "manifest.json").exists()


def test_settings_that_do_not_go_together(tmp_path):
    flags = ["--data-dir", str(tmp_path), "--dataset", "mine", "--stream"]
    with pytest.raises(SystemExit, match="STREAM = True needs the shards: set RAW_DATA_DIR"):
        load_settings(flags)
    raw = make_raw(tmp_path / "raw")
    with pytest.raises(ValueError, match="STREAM = True reads WebDataset tars or parquet"):
        look_first(load_settings([*flags, "--raw-data-dir", str(raw)]))
    prepare("mine", tmp_path, raw_dir=raw)
    with pytest.raises(ValueError, match="holds its pictures unpacked.*--no-stream"):
        made(tmp_path, write_tars(tmp_path / "tars", samples(12), 12))
    made(tmp_path, tmp_path / "tars", "streamed")
    with pytest.raises(ValueError, match="is streamed from its shards: set STREAM = True"):
        prepare("streamed", tmp_path, raw_dir=tmp_path / "tars")
    assert prepare("streamed", tmp_path) == tmp_path / "streamed", "without RAW_DATA_DIR it is used as it is"
    with pytest.raises(ValueError, match="streamed stays in its shards .STREAM. and cannot be mixed"):
        prepare("mine,streamed", tmp_path)


# --- what is counted, what is kept ---


def test_nothing_is_copied_and_the_shards_stay_as_they_are(tmp_path):
    its = samples(30)
    raw = write_tars(tmp_path / "raw", its, 8)
    before = listing(raw)
    folder = made(tmp_path, raw)
    assert listing(raw) == before
    kept = listing(folder)
    assert {*kept} - {".lock"} == {"captions.json", "manifest.json", "report.json", "scan.jsonl", "stream/index.npy",
                       "stream/names.bin", "stream/shards.json"}  # fmt: skip
    assert not any(sample.data in data for sample in its for data in kept.values())
    assert is_whole(folder) and verify(folder)["stream"] == {"shards": 4}
    (folder / "stream" / "index.npy").unlink()
    assert not is_whole(folder), "the control: without the index it is not whole"


BAD = {
    "truncated or damaged": jpeg(6)[:400], "not a picture": b"<html>404</html>", "empty file": b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_broken_members_are_counted_named_and_left_out(tmp_path, capsys, kind):
    its = samples(60)
    for place, data in zip((6, 20, 41), BAD.values(), strict=True):
        its[place] = its[place]._replace(data=data)
    its[50] = its[50]._replace(captions=["", "   "])
    raw = WRITERS[kind](tmp_path / "raw", its, 16)
    with pytest.raises(ValueError, match="4 of 60 pictures"):
        made(tmp_path, raw, rules=Rules(workers=1))
    assert not (tmp_path / "mine" / "manifest.json").exists()
    folder = made(tmp_path, raw, rules=Rules(max_bad_fraction=0.1, workers=1))
    refused = json.loads((folder / "report.json").read_text())["pictures"]["refused_pictures"]
    bad = {f"{place:05}.jpg": reason for place, reason in zip((6, 20, 41), BAD, strict=True)}
    reasons = {name: reason.partition(":")[0] for name, reason in refused.items()}
    assert reasons == bad | {"00050.jpg": "no caption left"}
    assert {*captions_of(folder)} == {f"{place:05}.jpg" for place in range(60)} - refused.keys()
    assert "00020.jpg" in capsys.readouterr().out
    index = Index(folder)
    assert [read_bytes(index.picture(place)) for place in range(len(index))] == [
        sample.data for place, sample in enumerate(its) if f"{place:05}.jpg" not in refused]  # fmt: skip


def test_members_that_are_not_used_are_named(tmp_path, capsys):
    its = samples(12)
    its[7] = its[7]._replace(captions=None)
    write_tar(tmp_path / "raw" / "a.tar", its, {"lonely.txt": b"a text", "list.csv": b"x"})
    folder = made(tmp_path, tmp_path / "raw")
    told = capsys.readouterr().out
    assert "1 picture (00007.jpg) without a text" in told and "1 text (lonely.txt) without a picture" in told
    assert "1 member (list.csv)" in told
    assert len(captions_of(folder)) == 11


def test_a_shard_that_is_cut_off_is_named(tmp_path):
    raw = write_tars(tmp_path / "raw", samples(24), 12)
    path = raw / "00001.tar"
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(ValueError, match=r"00001\.tar is damaged"):
        made(tmp_path, raw)


def test_splits_are_those_of_the_set_or_drawn_as_an_unpacked_one_draws_them(tmp_path):
    its = samples(40)
    raw = write_tars(tmp_path / "own", its, 12)
    own = captions_of(made(tmp_path, raw, "own"))
    assert {name: record["split"] for name, record in own.items()} == {f"{s.key}.jpg": s.split for s in its}
    its[9] = its[9]._replace(data=its[30].data)  # a copy, which must lie in one split with its twin
    raw = write_tars(tmp_path / "drawn", [s._replace(split=None) for s in its], 12)
    drawn = captions_of(made(tmp_path, raw, "drawn"))
    assert drawn["00009.jpg"]["split"] == drawn["00030.jpg"]["split"]
    prepare("unpacked", tmp_path, raw_dir=raw)
    assert drawn == captions_of(tmp_path / "unpacked")
    assert {record["split"] for record in drawn.values()} == {"train", "val", "test"}


@pytest.mark.parametrize("kind", WRITERS)
def test_equal_names_in_several_shards_lead_to_their_own_pictures(tmp_path, kind):
    its = [Sample(f"{place % 6:05}", jpeg(place), [f"a dog {place} runs"]) for place in range(18)]
    raw = WRITERS[kind](tmp_path / "raw", its, 6)
    folder = made(tmp_path, raw)
    records = load_records(folder, ("train", "val", "test"))
    paths = paths_of(folder / "images", records)
    found = {record["captions"][0]: read_bytes(path) for record, path in zip(records, paths, strict=True)}
    assert found == {sample.captions[0]: sample.data for sample in its}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_pass_that_is_stopped_goes_on_and_ends_the_same(tmp_path, monkeypatch, kind):
    raw = WRITERS[kind](tmp_path / "raw", samples(40), 12)
    whole = made(tmp_path, raw, "whole")
    looked_at, real = [], check.examine

    def examine(address):
        looked_at.append(address[0])
        if len(looked_at) == 25:
            raise KeyboardInterrupt
        return real(address)

    monkeypatch.setattr(check, "examine", examine)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, raw)
    again = made(tmp_path, raw)
    assert len(looked_at) == 41, "24 of them once, the one that was being looked at twice"
    for name in ("captions.json", "stream/index.npy", "stream/names.bin", "stream/shards.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


def with_texts(path: Path, texts: dict[str, str], each: int) -> Path:
    """Tars of pictures with .txt files, one text a picture; names as they are given."""
    names = list(texts)
    for number, start in enumerate(range(0, len(names), each)):
        its = {f"{name}.{ending}": data for place, name in enumerate(names[start : start + each], start)
               for ending, data in (("jpg", jpeg(place)), ("txt", texts[name].encode()))}  # fmt: skip
        write_tar(path / f"{number:05}.tar", [], its)
    return path


def odd_parquet(raw: Path, its: list[Sample]) -> Path:
    return write_parquets(raw, its, 5)


ODD = {
    "a name in several shards": lambda raw: write_tars(raw, [
        Sample(f"{place % 7:05}", jpeg(place), [f"a dog {place} runs"]) for place in range(28)], 7),
    "a picture under one name in several shards": lambda raw: write_tars(raw, [
        Sample(f"{place % 7:05}", jpeg(place % 7), [f"a dog {place} runs"]) for place in range(28)], 7),
    "lines": lambda raw: with_texts(raw, {
        f"{place:05}": f"A dog {place} runs\nover the hill.\n\nThe cat sits." for place in range(24)}, 7),
    "numbers beside captions": lambda raw: with_texts(raw, {
        f"{place:05}": "0 0.5 0.5" if place % 9 == 4 else f"A dog {place} runs" for place in range(24)}, 7),
    "folders": lambda raw: with_texts(raw, {
        f"{'val' if place % 4 == 3 else 'train'}/a.{place}": f"a dog {place} runs" for place in range(24)}, 7),
    "lists in cells": lambda raw: odd_parquet(raw, [
        Sample(f"{place:05}", jpeg(place), [f"['a dog {place}', 'the dog {place}']"]) for place in range(24)]),
    "a row for each caption": lambda raw: odd_parquet(raw, [
        Sample(f"{place // 2:05}", jpeg(place // 2), [f"a dog {place} runs"]) for place in range(40)]),
    "copies, repairs, refusals": lambda raw: odd_parquet(raw, [
        Sample(f"{place:05}", jpeg(place % 20), [f" a dog {place} runs .", "a cat\nsits", "", "a cat sits"])
        for place in range(30)]),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_lies_on_the_disk_while_it_is_read_gives_what_memory_gives(tmp_path, capsys, case):
    raw = ODD[case](tmp_path / "raw")
    told = []
    for name, stream in (("near", None), ("far", str(raw))):
        prepare("mine", tmp_path / name, raw_dir=raw, stream=stream, rules=Rules(max_bad_fraction=0.5, workers=1))
        lines = capsys.readouterr().out.replace(str(tmp_path / name), "").splitlines()
        told.append([line for line in lines if "layout" not in line and "may be deleted" not in line])
    assert told[0] == told[1] and len(told[0]) > 5
    near, far = (tmp_path / name / "mine" for name in ("near", "far"))
    assert (near / "captions.json").read_bytes() == (far / "captions.json").read_bytes()
    reports = [json.loads((folder / "report.json").read_bytes()) for folder in (near, far)]
    for part in ("captions", "pictures", "sizes", "counts", "notes", "pictures_sha256"):
        assert reports[0][part] == reports[1][part], part
    assert not (far / "stream" / "read").exists()


def test_a_cutoff_streams_the_first_pictures_as_an_unpacked_set_has_them(tmp_path):
    raw = write_tars(tmp_path / "raw", [s._replace(split=None) for s in samples(40)], 12)
    near, far = (prepare("mine", tmp_path / name, raw_dir=raw, stream=stream, cutoff=3, rules=Rules(workers=1))
                 for name, stream in (("near", None), ("far", str(raw))))  # fmt: skip
    assert (near / "captions.json").read_bytes() == (far / "captions.json").read_bytes()
    assert len(captions_of(far)) == len(Index(far)) == 9
    assert all(read_bytes(Index(far).picture(place)) == jpeg(int(name[:5]))
               for place, name in enumerate(captions_of(far)))  # fmt: skip


# --- what has changed since ---


def changed(raw: Path) -> None:
    write_tar(raw / "00001.tar", samples(3))


def touched(raw: Path) -> None:
    os.utime(raw / "00001.tar", ns=(0, 1))


def gone(raw: Path) -> None:
    (raw / "00001.tar").unlink()


@pytest.mark.parametrize("change", [changed, touched, gone])
@pytest.mark.parametrize("compare", [True, False])
def test_a_shard_that_changed_is_told_by_name_before_training_and_before_an_evaluation(tmp_path, change, compare):
    raw = write_tars(tmp_path / "raw", samples(40), 12)
    where = ["--raw-data-dir", f"{raw}/{{00000..00003}}.tar", "--stream", "--num-workers", "1"]
    settings = load_settings(["--dataset", "mine", "--data-dir", str(tmp_path), *where])
    folder = prepare_from(settings)
    assert prepare_from(settings, compare=compare) == folder
    load_split(settings, "test", settings.values)
    change(raw)
    looks = (lambda: prepare_from(settings, compare=compare), lambda: load_split(settings, "test", settings.values))
    for look in looks:
        with pytest.raises(ValueError, match=r"1 shard .*00001\.tar. (changed since|not there).*--remake") as error:
            look()
        assert "\n" not in str(error.value)


def test_more_or_fewer_shards_than_before_are_told(tmp_path):
    raw = write_tars(tmp_path / "raw", samples(40), 12)
    made(tmp_path, f"{raw}/{{00000..00002}}.tar")
    with pytest.raises(ValueError, match=r"other shards than RAW_DATA_DIR = .* means now: 1 shard .*00003\.tar"):
        made(tmp_path, raw)
    assert made(tmp_path, raw, compare=False), "a resume needs the set that was made"
    with pytest.raises(ValueError, match="other shards than RAW_DATA_DIR"):
        look_first(load_settings(["--data-dir", str(tmp_path), "--dataset", "mine", "--stream",
                                  "--raw-data-dir", str(raw)]))  # fmt: skip


def test_a_remake_reads_the_shards_anew_and_moves_no_picture(tmp_path):
    its = [sample._replace(split=None) for sample in samples(80)]
    raw = write_tars(tmp_path / "raw", its[:60], 20)
    old = captions_of(made(tmp_path, raw, rules=Rules(workers=1)))
    write_tar(raw / "00003.tar", its[60:])
    touched(raw)
    folder = made(tmp_path, raw, remake=True, rules=Rules(workers=1))
    new = captions_of(folder)
    assert len(new) == 80 and {name: new[name]["split"] for name in old} == {n: r["split"] for n, r in old.items()}
    shards.check_shards(folder)
    digest = verify(folder)["captions_sha256"]
    touched(raw)
    os.utime(raw / "00002.tar", ns=(0, 5))
    assert verify(made(tmp_path, raw, remake=True, rules=Rules(workers=1)))["captions_sha256"] == digest


def test_shards_that_moved_are_found_by_a_remake(tmp_path):
    raw = write_tars(tmp_path / "raw", samples(20), 12)
    folder = made(tmp_path, raw)
    digest = verify(folder)["captions_sha256"]
    shutil.move(raw, tmp_path / "moved")
    with pytest.raises(ValueError, match="2 shards .*not there"):
        prepare("mine", tmp_path)
    made(tmp_path, tmp_path / "moved", remake=True)
    assert verify(folder)["captions_sha256"] == digest and read_bytes(Index(folder).picture(0)) == jpeg(0)


def test_a_star_in_a_repository_stops_at_a_slash():
    for name, pattern, fits in (("data/a.tar", "data/*.tar", True), ("data/old/a.tar", "data/*.tar", False),
                                ("a.tar", "*.tar", True), ("data/a.tar", "*/a.tar", True)):  # fmt: skip
        assert streamed._matches(name, pattern) is fits


def test_a_file_may_have_commas_and_braces_in_its_path(tmp_path):
    for name in ("a,b", "c{d}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(b"")
        assert streamed.expanded(str(tmp_path / name / "0.tar")) == [str(tmp_path / name / "0.tar")]
