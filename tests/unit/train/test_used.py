"""What a run notes of its pictures and captions, and what is found of them in a set that has changed."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from nanocaption.base.settings import load_settings
from nanocaption.data.prepared import load_records
from nanocaption.prepare.make import prepare
from nanocaption.train.used import find_used, note_used, packed, refuse_changed, unpacked


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set "mine" of 40 small pictures, 20 of them to validate or test."""
    raw = tmp_path_factory.mktemp("raw")
    lines = ["file_name,caption,split"]
    for number in range(40):
        Image.effect_noise((20, 20), number + 1).save(raw / f"{number:02}.png")
        split = "train" if number < 20 else "val" if number < 30 else "test"
        lines += [f"{number:02}.png,a thing number {number} {word},{split}" for word in ("here", "there")]
    (raw / "captions.csv").write_text("\n".join(lines) + "\n")
    data = tmp_path_factory.mktemp("data")
    prepare("mine", data, raw_dir=raw)
    return data


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data")) / "mine"


def settings(folder: Path, *flags: str):
    return load_settings(["--dataset", "mine", "--data-dir", str(folder.parent), *flags])


def noted(folder: Path, *flags: str):
    records = {role: load_records(folder, role) for role in ("train", "val")}
    return note_used(settings(folder, *flags), folder, records)


def edit(folder: Path, change) -> None:
    """captions.json with its list of records changed in place."""
    path = folder / "captions.json"
    records = json.loads(path.read_text())["images"]
    path.write_text(json.dumps({"images": change(records) or records}))


def refusal(folder: Path, used) -> str:
    with pytest.raises(SystemExit) as refused:
        refuse_changed(find_used(settings(folder), folder, used), folder)
    return str(refused.value)


def test_the_note_is_read_as_it_was_written_and_is_small(folder):
    used = noted(folder)
    assert unpacked(packed(used)) == used
    assert packed(used).numel() < 60 * len(used)  # of 12 bytes of digests with each caption more
    with pytest.raises(ValueError, match="cannot be read"):
        unpacked(packed(used)[:40])


def test_what_the_run_does_not_use_may_be_another(folder):
    """Pictures that came since, before and between its own; another split's captions, pictures and names."""
    used = noted(folder)
    before = {role: load_records(folder, role) for role in ("train", "val")}

    def grow(records):
        for record in records:
            if record["split"] == "test":
                record["captions"] = ["something else altogether"]
        new = [{"file_name": f"new{n}.png", "split": s, "captions": ["a new one"]} for n, s in enumerate(
            ("train", "val", "restval"))]  # fmt: skip
        return [*new[:2], *reversed(records), new[2]]

    edit(folder, grow)
    (folder / "images" / "35.png").write_bytes(b"no picture")
    found = find_used(settings(folder), folder, used)
    refuse_changed(found, folder)
    assert found.records == before and not found.notes


def test_a_file_that_was_copied_is_the_same_picture(folder):
    used = noted(folder)
    for path in (folder / "images").iterdir():
        path.write_bytes(path.read_bytes())  # another time
    refuse_changed(find_used(settings(folder), folder, used), folder)
    (folder / "scan.jsonl").unlink()
    refuse_changed(find_used(settings(folder), folder, used), folder)


def test_a_picture_that_was_replaced_is_named(folder):
    used = noted(folder)
    shutil.copy(folder / "images" / "00.png", folder / "images" / "07.png")
    assert "1 picture (07.png) replaced by other files" in refusal(folder, used)


def test_a_caption_that_was_changed_is_named_with_its_text(folder):
    used = noted(folder)

    def change(records):
        records[3]["captions"][1] = "a dog runs"
        records[25]["captions"].pop()

    edit(folder, change)
    told = refusal(folder, used)
    assert "captions of 2 pictures (03.png, 25.png)" in told
    assert "03.png: caption 2 is 'a dog runs' now" in told and "25.png: 1 of 2 captions gone" in told


def test_what_training_reads_alike_is_alike_but_references_and_rewards_are_read_as_they_are_written(folder):
    used, rewarded = noted(folder), noted(folder, "--objective", "scst", "--scst-start-epoch", "1")

    def change(records):
        records[0]["captions"][0] += "  "
        records[0]["captions"].append(records[0]["captions"][1])  # said twice: once learnt from

    edit(folder, change)
    refuse_changed(find_used(settings(folder), folder, used), folder)
    scst = settings(folder, "--objective", "scst", "--scst-start-epoch", "1")
    assert find_used(scst, folder, rewarded).changed
    edit(folder, lambda records: records[20]["captions"].append("  "))
    assert "20.png" in refusal(folder, used)


def test_a_picture_in_another_split_is_the_runs_own_and_that_is_told(folder):
    used = noted(folder)
    edit(folder, lambda records: records[2].update(split="test"))
    found = find_used(settings(folder), folder, used)
    refuse_changed(found, folder)
    assert [record["split"] for record in found.records["train"]] == ["train"] * 20
    assert "1 picture (02.png) of this run are in another split now" in found.notes[0]


def test_a_picture_that_left_the_set_is_taken_from_the_captions_that_are_kept(folder):
    used = noted(folder)
    shutil.copy(folder / "captions.json", folder / "captions.replaced-0123456789ab.json")
    edit(folder, lambda records: records[1:])
    found = find_used(settings(folder), folder, used)
    refuse_changed(found, folder)
    assert found.records["train"][0]["file_name"] == "00.png" and "no longer in" in found.notes[0]
    (folder / "captions.replaced-0123456789ab.json").unlink()
    assert "1 picture (00.png) missing" in refusal(folder, used)


def test_a_file_that_is_missing_is_named(folder):
    used = noted(folder)
    (folder / "images" / "21.png").unlink()
    assert "1 picture (21.png) missing" in refusal(folder, used)
