"""Names in the captions and names on the disk: what is matched and noted, and what is refused with which hint."""

import unicodedata

import pytest

from nanocaption.prepare import layouts
from nanocaption.prepare.caption_files import NotThereError, Row
from nanocaption.prepare.make import read_folder
from nanocaption.prepare.picture_files import find_pictures, plain_name
from tests.raw_sets import jpeg, write

NFC = unicodedata.normalize("NFC", "café.jpg")
NFD = unicodedata.normalize("NFD", "café.jpg")


def put(folder, *paths):
    for shade, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg(20 + shade))
    return folder


@pytest.mark.parametrize(("listed", "on_disk", "in_set", "note"), [
    (NFC, NFD, NFC, "in other Unicode"),
    (NFD, NFC, NFC, "in other Unicode"),
    ("IMG.JPG", "img.jpg", "img.jpg", "in other case"),
    ("img.jpg", "photos/IMG.JPG", "IMG.JPG", "in other case"),
    (NFD.upper(), NFC, NFC, "in other case"),
    ("1000092795", "1000092795.jpg", "1000092795.jpg", "with another or no ending"),
    ("img 2.150", "img 2.150.jpg", "img 2.150.jpg", "with another or no ending"),
    ("a.jpeg", "a.jpg", "a.jpg", "with another ending"),
    ("a.jpg", "a.JPEG", "a.JPEG", "with another ending"),
    ("a.jpg", "a.png", "a.png", "with another or no ending"),
    ("a  b.jpg ", "a b.jpg", "a b.jpg", "in other case or with other spaces"),
        ("home/bob/data/images/a.jpg", "images/a.jpg", "images/a.jpg", "in another folder"),
    ("home/bob/data/images/a.jpg", "pictures/a.jpg", "a.jpg", "in another folder"),
    ("data/images/A.jpeg", "images/a.jpg", "images/a.jpg", "with another ending"),
])  # fmt: skip
def test_one_file_that_fits_nearly_is_taken_with_a_note(tmp_path, listed, on_disk, in_set, note):
    put(tmp_path, on_disk, "other.jpg")
    found = find_pictures(tmp_path, [listed])
    assert found.pictures == {listed: tmp_path / on_disk} and found.names == {listed: in_set}
    assert found.unused == ["other.jpg"]
    assert len(found.notes) == 1 and found.notes[0].startswith(f"1 name ({listed} is {on_disk}) found {note}")


@pytest.mark.parametrize("listed", ["a.jpg", "images/a.jpg"])
def test_a_name_as_on_the_disk_needs_no_note(tmp_path, listed):
    put(tmp_path, "images/a.jpg")
    found = find_pictures(tmp_path, [listed])
    assert found.pictures == {listed: tmp_path / "images" / "a.jpg"} and not found.names and not found.notes


@pytest.mark.parametrize(("listed", "plain"), [
    ("./a.jpg", "a.jpg"), ("images\\b\\a.jpg", "images/b/a.jpg"), ("/home/bob/a.jpg", "home/bob/a.jpg"),
    ("C:\\Users\\bob\\a.jpg", "Users/bob/a.jpg"), ("../images/a.jpg", "images/a.jpg"), (".\\..\\a.jpg", "a.jpg"),
    ("https://site.org/img/a%20b.jpg?x=1#y", "site.org/img/a b.jpg"), ("s3://bucket/a.jpg", "bucket/a.jpg"),
    ("file:///home/bob/a.jpg", "home/bob/a.jpg"), ("\\\\server\\share\\a.jpg", "server/share/a.jpg"),
    ("a/../../b.jpg", "a/../../b.jpg"), ("a b.jpg", "a b.jpg"), ("", ""), (7, 7),
])  # fmt: skip
def test_names_of_other_machines_become_relative(listed, plain):
    assert plain_name(listed) == plain


@pytest.mark.parametrize(
    "prefix", ["/home/bob/flickr/", "C:\\bob\\", "https://site.org/data/", "..\\images\\", "./", "elsewhere/"]
)
def test_a_table_written_on_another_machine_is_read(tmp_path, prefix):
    put(tmp_path, "images/0.jpg", "images/1.jpg")
    rows = ["image,caption,split", f"{prefix}0.jpg,a dog,train", f"{prefix}1.jpg,a cat,val"]
    write(tmp_path / "captions.csv", "".join(f"{row}\n" for row in rows))
    contents, pictures = read_folder(tmp_path, 1, questions=False)
    assert [record["captions"] for record in contents.records] == [["a dog"], ["a cat"]]
    names = [record["file_name"] for record in contents.records]
    assert [pictures[name] for name in names] == [tmp_path / "images" / "0.jpg", tmp_path / "images" / "1.jpg"]
    assert names in (["0.jpg", "1.jpg"], ["images/0.jpg", "images/1.jpg"])


def test_the_longest_common_tail_decides(tmp_path):
    put(tmp_path, "train/1.jpg", "val/1.jpg", "val/2.jpg")
    listed = ["home/bob/train/1.jpg", "home/bob/val/1.jpg", "home/bob/val/2.jpg"]
    found = find_pictures(tmp_path, listed)
    assert [path.relative_to(tmp_path).as_posix() for path in found.pictures.values()] == [
        "train/1.jpg",
        "val/1.jpg",
        "val/2.jpg",
    ]
    assert [*found.names.values()] == ["train/1.jpg", "val/1.jpg", "val/2.jpg"] and not found.unused


def test_two_files_that_fit_equally_are_refused_with_both_names(tmp_path):
    put(tmp_path, "A.jpg", "a.jpg")
    assert find_pictures(tmp_path, ["a.jpg"]).pictures == {"a.jpg": tmp_path / "a.jpg"}
    with pytest.raises(ValueError, match=r"two different pictures are called A.JPG \(A.jpg, a.jpg\)"):
        find_pictures(tmp_path, ["A.JPG"])
    put(tmp_path, "b.png", "b.webp")
    with pytest.raises(ValueError, match=r"two different pictures are called b \(b.png, b.webp\)"):
        find_pictures(tmp_path, ["b"])
    (tmp_path / "b.webp").write_bytes((tmp_path / "b.png").read_bytes())
    assert find_pictures(tmp_path, ["b"]).pictures == {"b": tmp_path / "b.png"}


def test_a_file_that_another_name_means_is_not_taken_for_a_missing_one(tmp_path):
    put(tmp_path, "1.png", "a/1.jpg")
    with pytest.raises(NotThereError, match=r"1 picture \(1.tif\) named by the captions but missing;"):
        find_pictures(tmp_path, ["1.png", "a/1.jpg", "1.tif"])
    with pytest.raises(NotThereError, match=r"1 picture \(b/1.jpg\) named"):
        find_pictures(tmp_path, ["1.png", "a/1.jpg", "b/1.jpg"])


def test_a_picture_of_another_split_or_of_a_folder_that_is_there_is_missing(tmp_path):
    put(tmp_path, "train/1.jpg", "train/2.jpg", "val/2.jpg")
    with pytest.raises(NotThereError, match=r"1 picture \(val/1.jpg\) named"):  # train/1.jpg is another one
        find_pictures(tmp_path, ["val/1.jpg", "val/2.jpg"])
    with pytest.raises(NotThereError, match=r"1 picture \(home/val/1.jpg\) named"):
        find_pictures(tmp_path, ["home/val/1.jpg", "home/val/2.jpg"])


def test_two_names_that_nearly_mean_one_file_are_refused(tmp_path):
    put(tmp_path, "img.jpg")
    with pytest.raises(ValueError, match="1 picture .* under two file names"):
        find_pictures(tmp_path, ["IMG.JPG", "Img.jpg"])


def test_missing_pictures_name_the_nearest_file(tmp_path):
    put(tmp_path, "dog_001.jpg", "cat.jpg")
    with pytest.raises(
        NotThereError, match=r"\(dog_01.jpg\) named by the captions but missing \(nearest to dog_01.jpg: dog_001.jpg\)"
    ):
        find_pictures(tmp_path, ["dog_01.jpg"])


def test_an_exact_path_goes_before_a_longer_one_and_unused_are_counted_by_path(tmp_path):
    put(tmp_path, "1.jpg", "b/1.jpg")
    found = find_pictures(tmp_path, ["1.jpg"])
    assert found.pictures == {"1.jpg": tmp_path / "1.jpg"} and found.unused == ["b/1.jpg"]


def test_a_path_that_leads_out_in_its_middle_is_still_refused():
    with pytest.raises(ValueError, match="not a plain path"):
        layouts.clean_records([Row("a/../../x.jpg", "train", ["a"])], 1, "here")


def test_an_unknown_folder_is_told_what_it_holds(tmp_path):
    put(tmp_path, "a.jpg", "b.png")
    write(tmp_path / "x.json", '[{"x": 1, "y": "a dog"}, {"x": 2, "y": "a cat"}]')
    write(tmp_path / "labels.csv", "picture;words\n1;2\n")
    write(tmp_path / "notes.md", "#")
    with pytest.raises(NotThereError) as caught:
        layouts.find(tmp_path)
    said = str(caught.value)
    assert "\n" not in said and "It holds 2 pictures (.jpg, .png)" in said and "Give it one of" in said
    assert "1 .json file: x.json holds a list of 2 objects with the keys x, y" in said
    assert "1 .csv file: labels.csv begins with the columns picture, words" in said and "1 .md file (notes.md)" in said
