"""The check before a set is made: what is kept, converted, refused and why; kills, reruns, dead workers, copies."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from nanocaption.base import cli
from nanocaption.data.prepared import is_whole, load_records, verify
from nanocaption.prepare import check, check_report
from nanocaption.prepare.make import prepare
from tests.raw_sets import ROOT, fix_splits, listing, make_raw, run_script, write_csv

SHARED = ROOT.parent / "shared" / "data"


def picture(number: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number // 7 % 256))


def data(image: Image.Image, kind: str = "JPEG", **arguments) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **arguments)
    return file.getvalue()


def raw_set(folder: Path, good: int = 6, extra: dict[str, bytes] | None = None, captions: dict | None = None) -> Path:
    """A folder with captions.jsonl: `good` plain pictures, and `extra` ones in train; captions of single pictures."""
    files = {f"{number:03d}.jpg": data(picture(number)) for number in range(good)} | (extra or {})
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, (name, content) in enumerate(files.items()):
        (folder / "images" / name).write_bytes(content)
        texts = (captions or {}).get(name, ["A dog .", "two dogs"])
        split = ("val", "test", "train")[min(number, 2)]
        lines.append(json.dumps({"image": name, "captions": texts, "split": split}))
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


ODD = {
    "grey.jpg": data(Image.new("L", (24, 16), 90)),
    "alpha.png": data(Image.new("RGBA", (24, 16), (1, 2, 3, 99)), "PNG"),
    "cmyk.jpg": data(Image.new("CMYK", (24, 16), (9, 9, 90, 0))),
    "png.jpg": data(picture(50), "PNG"),
}
BAD = {
    "empty.jpg": (b"", "empty file"),
    "cut.jpg": (data(picture(60, (200, 200)))[:700], "truncated or damaged"),
    "page.jpg": (b"<html>Not found</html>", "not a picture"),
    "dot.png": (data(picture(61, (1, 1)), "PNG"), "a side below 8 pixels"),
    "strip.png": (data(picture(62, (1, 3000)), "PNG"), "too long a shape"),
}


def test_pictures_are_kept_converted_or_refused_and_the_report_says_so(tmp_path, capsys):
    raw = raw_set(tmp_path / "raw", extra=ODD | {name: content for name, (content, _) in BAD.items()})
    before = listing(raw)
    folder = prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(max_bad_fraction=0.5))
    report = report_of(folder)
    assert (report["pictures"]["checked"], report["pictures"]["kept"]) == (15, 10)
    assert {reason: kind["count"] for reason, kind in report["pictures"]["refused"].items()} == {
        reason: 1 for _, reason in BAD.values()
    }
    assert report["pictures"]["refused_pictures"].keys() == BAD.keys()
    assert report["pictures"]["converted"] == {
        what: {"count": 1, "cases": [name]}
        for what, name in zip(("grey", "alpha", "CMYK", "other suffix"), ODD, strict=True)
    }
    assert report["sizes"]["width"] == {"least": 24, "median": 24, "mean": 24, "most": 24}
    assert report["counts"] == verify(folder)["counts"] and len(verify(folder)["pictures_sha256"]) == 64
    assert report["licence"] and report["source"] == str(raw.resolve())
    names = [record["file_name"] for record in load_records(folder, "train")]
    assert sorted(path.name for path in (folder / "images").iterdir()) == sorted([*names, "000.jpg", "001.jpg"])
    assert not BAD.keys() & set(names) and ODD.keys() <= set(names)
    assert listing(raw) == before
    out = capsys.readouterr().out
    assert "refused, not a picture: 1 (page.jpg (a web page (HTML), not a picture))" in out
    assert "converted, CMYK: 1 (cmyk.jpg)" in out and len(out.splitlines()) < 30


def test_above_the_bad_fraction_nothing_is_made_and_the_cases_are_told(tmp_path):
    raw = raw_set(tmp_path / "raw", good=18, extra={"empty.jpg": b"", "none.jpg": b"hello"})
    with pytest.raises(ValueError, match=r"2 of 20 pictures \(10.00 %\) cannot be used, above MAX_BAD_FR") as caught:
        prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(max_bad_fraction=0.09))
    assert "empty file: 1 (empty.jpg)" in str(caught.value) and "\n" not in str(caught.value)
    assert not is_whole(tmp_path / "mine") and not (tmp_path / "mine" / "captions.json").exists()
    assert report_of(tmp_path / "mine")["pictures"]["refused_pictures"].keys() == {"empty.jpg", "none.jpg"}
    assert is_whole(prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(max_bad_fraction=0.1)))


def test_folders_and_dead_links_named_like_pictures_are_refused(tmp_path):
    raw = raw_set(tmp_path / "raw", good=8)
    for name in ("005.jpg", "006.jpg", "007.jpg"):
        (raw / "images" / name).unlink()
    (raw / "images" / "005.jpg").mkdir()
    (raw / "images" / "006.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "real.jpg").write_bytes(data(picture(99)))
    (raw / "images" / "007.jpg").symlink_to(tmp_path / "real.jpg")
    folder = prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(max_bad_fraction=0.5))
    assert report_of(folder)["pictures"]["refused_pictures"] == {"005.jpg": "a folder", "006.jpg": "link to nothing"}
    assert (folder / "images" / "007.jpg").read_bytes() == data(picture(99))


def test_captions_are_repaired_or_refused_and_bare_pictures_left_out(tmp_path, capsys):
    texts = {"000.jpg": ["A dog\u2028runs .", "a dog runs", 7, ""], "003.jpg": [" ", "\ud83d"],
             "004.jpg": ["same", "same", "word " * 10_000]}  # fmt: skip
    raw = raw_set(tmp_path / "raw", captions=texts)
    with pytest.raises(ValueError, match=r"5 of 15 captions \(33.33 %\) cannot be used"):
        prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(max_bad_fraction=0.3))
    folder = prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(max_bad_fraction=0.4))
    report = report_of(folder)
    assert {reason: kind["count"] for reason, kind in report["captions"]["refused"].items()} == {
        "empty": 2, "not text": 1, "not valid UTF-8": 1, "above 500 words or 5,000 characters": 1,
    }  # fmt: skip
    assert {what: kind["count"] for what, kind in report["captions"]["repaired"].items()} == {
        "spaces and punctuation": 3, "line ends inside": 1, "said twice, one dropped": 1,
    }  # fmt: skip
    assert report["captions"]["text"] == {"version": 2, "case": "keep", "changed": 4, "examples": [
        ["A dog\u2028runs .", "A dog runs."], ["A dog .", "A dog."], ["A dog .", "A dog."]]}  # fmt: skip
    assert report["pictures"]["refused"] == {"no caption left": {"count": 1, "cases": ["003.jpg"]}}
    assert load_records(folder, "val")[0]["captions"] == ["A dog\u2028runs .", "a dog runs"]
    assert report["captions"]["refused_in"] == {"val": 2, "train": 3}
    assert "'A dog\\u2028runs .' -> 'A dog runs.'" in capsys.readouterr().out


def test_a_split_that_loses_all_its_pictures_stops_the_run(tmp_path):
    raw = raw_set(tmp_path / "raw", captions={"000.jpg": [""]})
    with pytest.raises(ValueError, match="no picture of the split val can be used"):
        prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(max_bad_fraction=1.0))
    assert not is_whole(tmp_path / "mine")


def test_the_case_of_captions_is_a_setting_and_part_of_sets_of_earlier_versions(tmp_path):
    raw = raw_set(tmp_path / "raw")
    lower = check.Rules(caption_case="lower")
    folder = prepare("mine", tmp_path, raw_dir=raw, rules=lower)
    assert load_records(folder, "val")[0]["captions"] == ["A dog .", "two dogs"]  # only what is trained on is lower
    assert prepare("mine", tmp_path, raw_dir=raw) == folder
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["caption_text"]
    for about in ({}, {"caption_text": {"version": 1, "case": "keep"}}):  # as earlier versions wrote it
        (folder / "manifest.json").write_text(json.dumps(manifest | about))
        assert prepare("mine", tmp_path, raw_dir=raw, rules=lower) == prepare("mine", tmp_path, raw_dir=raw) == folder
    (folder / "manifest.json").write_text(json.dumps(manifest | {"caption_text": {"version": 1, "case": "lower"}}))
    assert prepare("mine", tmp_path, raw_dir=raw, rules=lower) == folder
    with pytest.raises(ValueError, match="was made with CAPTION_CASE = lower, now it is keep"):
        prepare("mine", tmp_path, raw_dir=raw)


def test_the_demo_set_is_not_scanned_and_its_captions_stay(demo_data, tmp_path):
    assert not (demo_data / "demo" / "report.json").exists() and not (demo_data / "demo" / "scan.jsonl").exists()
    assert verify(demo_data / "demo")["caption_text"] == {"version": 2}
    folder = prepare("demo", tmp_path, cutoff=2, rules=check.Rules(caption_case="lower"))
    texts = [text for record in load_records(folder, "train") for text in record["captions"]]
    assert texts == [t for r in load_records(demo_data / "demo", "train", 2) for t in r["captions"]]


# --- copies ---


def test_copies_across_splits_are_left_out_of_training(tmp_path, capsys):
    """000 is val, 001 test, the rest train."""
    same_pixels = data(Image.open(io.BytesIO(data(picture(0)))), "PNG")
    extra = {"copy of test.jpg": data(picture(1)), "copy of val.png": same_pixels, "twin.jpg": data(picture(5)),
             "other.jpg": data(picture(1), quality=40)}  # fmt: skip
    folder = prepare("mine", tmp_path, raw_dir=raw_set(tmp_path / "raw", extra=extra))
    copies = report_of(folder)["pictures"]["copies"]
    assert copies["left_out"] == ["copy of test.jpg", "copy of val.png"]
    assert sorted(copies["cases"]) == [
        ["000.jpg", "copy of val.png"], ["001.jpg", "copy of test.jpg"], ["005.jpg", "twin.jpg"],
    ]  # fmt: skip
    assert copies["across_splits"] == 2 and ["001.jpg (test)", "copy of test.jpg (train)"] in copies["across_cases"]
    names = {record["file_name"] for record in load_records(folder, "train")}
    assert {"005.jpg", "twin.jpg"} <= names and not set(copies["left_out"]) & names
    assert len(load_records(folder, "test")) == len(load_records(folder, "val")) == 1
    out = capsys.readouterr().out
    assert "WARNING: the same picture in several splits: 2 (" in out and "2 left out" in out


def test_pictures_that_only_share_a_checksum_are_no_copies(tmp_path):
    paths = {}
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        paths[name] = tmp_path / name
        picture(number // 2).save(paths[name], compress_level=1 + number)
    records = [{"file_name": name, "split": split} for name, split in zip(paths, ("train", "test", "val"), strict=True)]
    found = check.scan(paths, tmp_path / "scan.jsonl", 1)
    assert len({found[name]["sha256"] for name in paths}) == 3 and found["a.png"]["pixels"] != found["c.png"]["pixels"]
    for entry in found.values():
        entry["pixels"] = 7
    report, leaving = check.find_copies(records, found, paths)
    assert report["cases"] == [["a.png", "b.png"]] and leaving == {"a.png"}


# --- kills and reruns ---


def test_what_was_scanned_is_not_decoded_again(tmp_path, monkeypatch):
    paths = {f"{number}.png": tmp_path / f"{number}.png" for number in range(6)}
    for number, path in enumerate(paths.values()):
        picture(number).save(path)
    paths["5.png"].write_bytes(b"")
    log, decoded, examine = tmp_path / "scan.jsonl", [], check.examine
    monkeypatch.setattr(check, "examine", lambda path: decoded.append(Path(path).name) or examine(path))
    first = check.scan(paths, log, 1)
    assert decoded == list(paths) == list(first)
    decoded.clear()
    assert check.scan(paths, log, 1) == first and not decoded
    text = log.read_bytes()
    log.write_bytes(b"not json\n" + text[: text.rindex(b"\n", 0, -1) + 30])  # the last line torn, another damaged
    assert check.scan(paths, log, 1) == first and decoded == ["5.png"]
    decoded.clear()
    assert check.scan(paths, log, 1) == first and not decoded
    picture(9).save(paths["2.png"])
    os.utime(paths["3.png"], (1, 1))
    assert check.scan(paths, log, 1)["2.png"] != first["2.png"] and decoded == ["2.png", "3.png"]
    decoded.clear()
    monkeypatch.setattr(check, "SCAN_VERSION", 2)
    check.scan(paths, log, 1)
    assert len(decoded) == 6


def test_a_file_that_could_not_be_opened_is_tried_again(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "late.png")
    paths = {"a.png": tmp_path / "a.png"}
    assert check.scan(paths, tmp_path / "log", 1)["a.png"]["refused"]["reason"] == "link to nothing"
    picture(1).save(tmp_path / "late.png")
    assert check.scan(paths, tmp_path / "log", 1)["a.png"]["refused"] is None


def test_a_killed_run_goes_on_and_ends_like_an_uninterrupted_one(tmp_path):
    raw = raw_set(tmp_path / "raw", good=400)
    whole = listing(prepare("mine", tmp_path / "reference", raw_dir=raw, rules=check.Rules(workers=1)))
    command = [sys.executable, ROOT / "prepare_dataset.py", "--dataset", "mine", "--raw-data-dir", raw,
               "--num-workers", "2", "--data-dir", tmp_path / "data"]  # fmt: skip
    log = tmp_path / "data" / "mine" / "scan.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.stat().st_size > 5000):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = log.read_bytes().count(b"\n")
    assert 0 < done < 400 and not is_whole(tmp_path / "data" / "mine")
    assert processes_of(raw) == []  # its workers ended with it
    folder = prepare("mine", tmp_path / "data", raw_dir=raw)
    assert log.read_bytes().count(b"\n") in (400, 401)  # a torn line stays, and counts for nothing
    after = listing(folder)
    assert {name: after[name] for name in after if name != "scan.jsonl"} == {
        name: whole[name] for name in whole if name != "scan.jsonl"
    }


def processes_of(raw: Path) -> list[str]:
    """Scanning processes that are left, looked for over two seconds until there are none."""
    for _ in range(100):
        lines = [path.read_bytes().replace(b"\0", b" ").decode() for path in Path("/proc").glob("[0-9]*/cmdline")
                 if path.parent.name != str(os.getpid()) and os.access(path, os.R_OK)]  # fmt: skip
        left = [line for line in lines if "nanocaption.prepare.check" in line]
        if not left:
            return []
        time.sleep(0.02)
    return left


def test_processes_find_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "PER_WORKER", 20)
    paths = {name: tmp_path / name for name in [f"{number}.png" for number in range(60)] + list(ODD)}
    for number, path in enumerate(paths.values()):
        path.write_bytes(ODD.get(path.name) or data(picture(number), "PNG"))
    paths["gone.png"] = tmp_path / "gone.png"
    alone = check.scan(paths, tmp_path / "one.jsonl", 1)
    assert check.scan(paths, tmp_path / "many.jsonl", 3) == alone and list(alone) == list(paths)
    logs = [sorted((tmp_path / name).read_bytes().split(b"\n")) for name in ("one.jsonl", "many.jsonl")]
    assert logs[0] == logs[1]


def test_a_worker_that_dies_is_told_with_its_picture(tmp_path, monkeypatch):
    """A worker that kills itself at the picture 250.png stands in for the kernel without memory."""
    script = tmp_path / "worker.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom nanocaption.prepare import check\n"
        "old = check.examine\n"
        "check.examine = lambda path: os.kill(os.getpid(), 9) if path.endswith('/250.png') else old(path)\n"
        "check._serve()\n"
    )
    paths = {f"{number}.png": tmp_path / f"{number}.png" for number in range(300)}
    for number, path in enumerate(paths.values()):
        picture(number).save(path)
    monkeypatch.setattr(cli, "own_process", lambda module: ([sys.executable, str(script)], dict(os.environ)))
    with pytest.raises(ValueError, match=r"died at .*/250.png \(signal SIGKILL\): where memory is short") as caught:
        check.scan(paths, tmp_path / "scan.jsonl", 2)
    assert "\n" not in str(caught.value)
    kept = (tmp_path / "scan.jsonl").read_bytes().count(b"\n")
    assert 150 < kept < 300
    monkeypatch.undo()
    assert len(check.scan(paths, tmp_path / "scan.jsonl", 2)) == 300


def test_a_scan_that_is_given_up_leaves_no_process(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(300)]
    answers = check.examine_all(paths, 2)
    next(answers)
    answers.close()
    assert processes_of(tmp_path) == []


# --- for people ---


def test_the_command_line_tells_faults_in_one_line_and_draws_the_report(tmp_path):
    raw = raw_set(tmp_path / "raw", extra={"empty.jpg": b""})
    flags = ("--dataset", "mine", "--raw-data-dir", str(raw))
    done = run_script(tmp_path, *flags)
    assert done.code == 1 and done.err.strip().splitlines()[-1].startswith(
        "prepare_dataset: 1 of 7 pictures (14.29 %) cannot be used, above MAX_BAD_FRACTION = 0.01: empty file: 1 (empty"
    )
    done = run_script(tmp_path, *flags, "--max-bad-fraction", "0.2", "--caption-case", "lower", anew=True)
    assert done.code == 0, done.err
    assert "refused, empty file: 1 (empty.jpg)" in done.out and "case of captions in training: lower" in done.out
    with Image.open(tmp_path / "data" / "mine" / "report.png") as drawn:
        assert drawn.size == (1200, 370)


def test_without_matplotlib_the_set_is_made_and_a_line_says_what_is_not_drawn(tmp_path, monkeypatch, capsys):
    fix_splits(monkeypatch)
    raw = make_raw(tmp_path / "raw")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    monkeypatch.setattr(check_report, "draw", lambda *_: 1 / 0)
    folder = prepare("mine", tmp_path / "data", raw_dir=raw)
    assert is_whole(folder) and "report.png is not drawn: pip install matplotlib" in capsys.readouterr().out
    monkeypatch.setattr(importlib.util, "find_spec", real)
    with pytest.raises(ZeroDivisionError):  # the control: with it there is a drawing
        prepare("other", tmp_path / "data", raw_dir=raw)


def test_no_manifest_without_a_report(tmp_path, monkeypatch, capsys):
    """The manifest is the last file written: a run that dies at the report leaves no whole set."""
    fix_splits(monkeypatch)
    raw = make_raw(tmp_path / "raw")
    monkeypatch.setattr(check_report, "write_report", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare("mine", tmp_path, raw_dir=raw)
    assert (tmp_path / "mine" / "captions.json").exists() and not is_whole(tmp_path / "mine")


@pytest.mark.long
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_photographs_pass_the_scan(tmp_path):
    paths = {path.name: path for path in sorted((SHARED / "flickr8k_native").glob("*.jpg"))}
    found = check.scan(paths, tmp_path / "scan.jsonl", 2)
    assert len(found) == 281 and not any(entry["refused"] for entry in found.values())
    assert {max(entry["width"], entry["height"]) for entry in found.values()} <= set(range(300, 501))


def test_odd_rows_reach_the_report(tmp_path):
    """A caption file with empty cells, through the reader of the layout."""
    raw = raw_set(tmp_path / "raw", good=3)
    (raw / "captions.jsonl").unlink()
    rows = [["000.jpg", "a dog", "train"], ["000.jpg", "", "train"], ["001.jpg", "a\ncat", "val"]]
    write_csv(raw / "captions.csv", ["image", "caption", "split"], [*rows, ["002.jpg", "x", "test"]])
    folder = prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(max_bad_fraction=0.3))
    assert report_of(folder)["captions"]["refused"] == {"empty": {"count": 1, "cases": ["000.jpg: ''"]}}
    assert load_records(folder, "val")[0]["captions"] == ["a\ncat"]
