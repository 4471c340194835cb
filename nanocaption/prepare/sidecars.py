"""Texts that go with one picture each by their name: a.txt, a.caption or a.json beside a.jpg, in folders and in tars.

Of several texts of one picture the first of TEXT_ENDINGS that says something is taken. Lines of a .txt or .caption:
after a blank line or an end mark (. ! ?) another caption begins; a line goes on with the one before where that ends in
a comma, or where it begins in lower case in a text that begins with a capital; where none of this tells, the texts of
the whole set do: do more than half of such lines begin with a word that texts begin with (but for texts with one end
mark, at their end)? And where all texts have the same number of lines, three or more, and half of the lines have end
marks, each line is a caption. Notes say what was done.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from nanocaption.base import on_disk
from nanocaption.base.files import cases, walk_files
from nanocaption.prepare import archives
from nanocaption.prepare.caption_files import CAPTION_KEYS, Row, Rows, Source, plain_split
from nanocaption.prepare.picture_files import folded, is_picture

# A .caption is written by captioners, where the .txt beside it may hold tags.
TEXT_ENDINGS = (".json", ".caption", ".txt")
JSON_KEYS = ("captions", *CAPTION_KEYS, "sentences", "text")
SENTENCE_KEYS = ("raw", *CAPTION_KEYS, "text")  # of captions that are objects
PICTURE_FOLDERS = {"images", "image", "imgs", "img", "pictures", "photos"}
TEXT_FOLDERS = {"captions", "caption", "texts", "text", "txt", "labels", "json"}
SPLIT_FOLDER = r"(train|training|val|valid|validation|dev|test)[\W_]*\d*(?:[\W_]*(?:images?|imgs?|pictures|set|data))?"
END_MARK = re.compile(r"[.!?\u3002\uff01\uff1f\u2026][\"'\u201d\u2019)\]]*$")
GOES_ON = re.compile(r"[,;:\u2013\u2014(-]$")

Key = tuple[str, str]  # the shard, "" in a folder; the path without its ending


class Text(NamedTuple):
    """What one file says of its picture."""

    captions: list[Any]  # of a .txt: its paragraphs, lines still apart
    split: object = None


def parse_text(data: bytes, ending: str, where: str) -> Text:
    """A .json, .caption or .txt. Raises ValueError, naming `where`, for what is no UTF-8 or no JSON."""
    try:
        text = data.decode("utf-8-sig")
        about = json.loads(text) if ending == ".json" else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no {'JSON' if ending == '.json' else 'UTF-8'} ({error}); mend it") from None
    if ending != ".json":
        text = text.replace("\r\n", "\n")
        text = text if "\n" in text else text.replace("\r", "\n")
        # Numbers alone are boxes or classes, as labels of other tasks have them.
        parts = re.split(r"\n[^\S\n]*\n", text) if any(map(str.isalpha, text)) else []
        return Text([part.strip() for part in parts if part.strip()])
    if not isinstance(about, dict):
        return Text(texts_of(about) if isinstance(about, str | list) else [])
    said = next((about[key] for key in JSON_KEYS if about.get(key) is not None), None)
    return Text([] if said is None else texts_of(said), about.get("split"))


def texts_of(cell: object) -> list[object]:
    """The captions in a cell: one or several, each as text or in {"raw": ...}; what is no text stays as it is."""
    if isinstance(cell, dict):
        cell = next((cell[key] for key in SENTENCE_KEYS if key in cell), None)
    return [next((sentence[key] for key in SENTENCE_KEYS if key in sentence), None) if isinstance(sentence, dict)
            else sentence for sentence in (cell if isinstance(cell, list) else [cell])]  # fmt: skip


def choose(
    texts: Mapping[Key, Mapping[str, Text]], scratch: Path | None = None
) -> tuple[Mapping[Key, Text], list[str]]:
    """Of the texts of each picture, by their endings, the one that counts, its lines made captions; and notes.

    scratch: as on_disk.rows takes it.
    """
    silent, both, differ = on_disk.rows(scratch), on_disk.rows(scratch), on_disk.rows(scratch)
    lined: MutableMapping[Key, list[str]] = on_disk.table(scratch)
    for key, its in texts.items():
        ending = _taken(its)
        if ending is None:
            silent.append(f"{key[1]}.json")
            continue
        if ending != ".json":
            lined[key] = its[ending].captions
        said = [" ".join(" ".join(map(str, text.captions)).split()) for text in its.values() if text.captions]
        if len(said) > 1:
            both.append(f"{key[1]}{ending}")
        if len({*said}) > 1:
            differ.append(key[1])
    lines, notes = captions_of_lines(lined, scratch)
    chosen = on_disk.table(scratch, (
        (key, Text(lines[key] if ending != ".json" else its[ending].captions, _split_in(its)))
        for key, its in texts.items() if (ending := _taken(its)) is not None))  # fmt: skip
    if silent:
        notes.append(f"{cases(silent, '.json file')} without any of the keys {', '.join(JSON_KEYS)}")
    how = f"in {cases(differ, 'picture')} they differ" if differ else "all say the same"
    several = f"{cases(both, 'picture')} with several texts: .json goes before .caption before .txt; {how}"
    return chosen, [several] * bool(both) + notes


def _taken(its: Mapping[str, Text]) -> str | None:
    """The ending of the text that counts; None where that is a .json which says nothing."""
    saying = next((ending for ending in TEXT_ENDINGS if ending in its and its[ending].captions), None)
    last = max(its, key=TEXT_ENDINGS.index)
    return saying or (None if last == ".json" else last)


def _split_in(texts: Mapping[str, Text]) -> object:
    return next((text.split for text in texts.values() if text.split), None)


def captions_of_lines(
    texts: Mapping[Key, list[str]], scratch: Path | None = None
) -> tuple[Mapping[Key, list[str]], list[str]]:
    """Paragraphs -> captions by the rule above, and notes with the first case."""
    apart = _starts_captions(texts)
    even = _one_a_line(texts)
    captions: MutableMapping[Key, list[str]] = on_disk.table(scratch)
    joined, several = on_disk.rows(scratch), on_disk.rows(scratch)
    for key, paragraphs in texts.items():
        lines = [_lines(paragraph) for paragraph in paragraphs]
        its = captions[key] = [caption for some in lines for caption in (some if even else _joined(some, apart))]
        if len(its) < sum(map(len, lines)):
            joined.append(key)
        if len(its) > 1:
            several.append(key[1])
    notes = []
    if joined:
        names = on_disk.rows(scratch, (name for _, name in joined))
        notes.append(f"{cases(names, 'text')} with a caption wrapped over several lines, joined; the first: "
                     f"{captions[joined[0]][0][:80]!r}")  # fmt: skip
    if several:
        notes.append(f"{cases(several, 'text')} with several captions, one a line")
    return captions, notes


def _starts_captions(texts: Mapping[Key, list[str]]) -> bool:
    """Whether lines of which the line before does not tell mostly begin as texts do, so with another caption."""
    starts = {_start(paragraph) for _, paragraphs in texts.items() for paragraph in paragraphs}
    votes = Counter(_start(lines[place]) in starts and not one
                    for _, paragraphs in texts.items() for lines in map(_lines, paragraphs)
                    for one in [_one_sentence(lines)]
                    for place in range(1, len(lines)) if _goes_on(lines, place) is None)  # fmt: skip
    return votes[True] > votes[False]


def _one_sentence(lines: Sequence[str]) -> bool:
    """Whether lines begin in lower case but the first, and only the last has an end mark."""
    return [place for place, line in enumerate(lines) if END_MARK.search(line)] == [len(lines) - 1] and all(
        line[0].islower() for line in lines[1:])


def _joined(lines: Sequence[str], apart: bool) -> list[str]:
    """The captions in the lines of a paragraph. apart: whether a line that may be either is another one."""
    captions = [[line] for line in lines[:1]]
    for place, line in enumerate(lines[1:], start=1):
        goes_on = _goes_on(lines, place)
        if goes_on or (goes_on is None and not apart):
            captions[-1].append(line)
        else:
            captions.append([line])
    return [" ".join(its) for its in captions]


def _one_a_line(texts: Mapping[Key, list[str]]) -> bool:
    """Whether all texts have the same number of lines, three or more, half of the lines with an end mark."""
    numbers: set[int] = set()
    before = marked = 0
    for _, paragraphs in texts.items():
        its = [line for paragraph in paragraphs for line in _lines(paragraph)]
        numbers.add(len(its))
        before += len(its[:-1])
        marked += sum(END_MARK.search(line) is not None for line in its[:-1])
        if len(numbers) > 1:
            return False
    return len(texts) > 2 and min(numbers) > 2 and 2 * marked >= before


def _lines(paragraph: str) -> list[str]:
    return [line.strip() for line in paragraph.split("\n") if line.strip()]


def _goes_on(lines: Sequence[str], place: int) -> bool | None:
    """Whether a line of a paragraph goes on with the one before it; None where they do not tell."""
    if END_MARK.search(lines[place - 1]):
        return False
    if GOES_ON.search(lines[place - 1]):
        return True
    return True if lines[0][0].isupper() and lines[place][0].islower() else None


def _start(text: str) -> str:
    """The first word in lower case, of scripts without cases the first character; any number is "0"."""
    word = text.split()[0].casefold()
    return "0" if word[0].isdigit() else word if word[0].islower() else word[0]


def find_sidecars(raw_dir: Path) -> Source | None:
    """Pictures in `raw_dir` with texts of the same name beside them, or in a folder beside theirs."""
    if not raw_dir.is_dir():
        return None
    pairs = pair_up([*walk_files(raw_dir)])
    texts = [*dict.fromkeys(text for its in pairs.values() for text in its)]
    if not texts:
        return None
    endings = Counter(PurePosixPath(text).suffix.lower() for text in texts)
    why = f"{' and '.join(f'{count:,} {ending}' for ending, count in endings.items())} files have the names of pictures"
    files = [raw_dir / text for text in texts]
    origin = f"{raw_dir}, {cases(texts, 'text')}"
    return Source("captions beside pictures", why, origin, files, functools.partial(read_sidecars, raw_dir, pairs))


def pair_up(paths: Sequence[str]) -> dict[str, list[str]]:
    """picture -> its texts: of the same path but for the ending, case or Unicode, else in a sibling folder."""
    pictures = [*filter(is_picture, paths)]
    left: dict[str, list[str]] = {}
    for path in paths:
        if path.lower().endswith(TEXT_ENDINGS):
            left.setdefault(stem_of(path), []).append(path)
    pairs = {picture: left[picture] for picture in pictures if picture in left}  # a.jpg.txt
    for key in (str, folded, lambda stem: _without_folder(folded(stem))):
        pairs |= _alike([picture for picture in pictures if picture not in pairs], left, key)
        for stem in {stem_of(text) for its in pairs.values() for text in its}:
            left.pop(stem, None)
    return pairs


def _alike(
    pictures: Sequence[str], texts: Mapping[str, list[str]], key: Callable[[str], str]
) -> dict[str, list[str]]:
    """picture -> its texts, where `key` makes of one picture's path and of one text's the same."""
    stems: dict[str, set[str]] = {}
    for stem in texts:
        stems.setdefault(key(stem), set()).add(stem)
    times = Counter(key(stem) for stem in {stem_of(picture) for picture in pictures})
    found = {picture: stems.get(key(stem_of(picture)), set()) for picture in pictures}
    return {picture: texts[next(iter(its))] for picture, its in found.items()
            if len(its) == 1 and times[key(stem_of(picture))] == 1}  # fmt: skip


def stem_of(path: str) -> str:
    """A path without its ending, from the last point of its name on."""
    return PurePosixPath(path).with_suffix("").as_posix()


def _without_folder(stem: str) -> str:
    """A path without the folder that tells whether pictures or texts are in it."""
    *folders, name = stem.split("/")
    known = PICTURE_FOLDERS | TEXT_FOLDERS
    place = next((place for place, folder in enumerate(folders) if folder.lower() in known), -1)
    return "/".join([*(folder for number, folder in enumerate(folders) if number != place), name])


def read_sidecars(raw_dir: Path, pairs: Mapping[str, Sequence[str]]) -> Rows:
    """One row per picture that has a text, named by its path; the folders train, val and test are splits."""
    texts: dict[Key, dict[str, Text]] = {}
    for its in tqdm(pairs.values(), desc="captions", unit="picture", mininterval=0.5, delay=1):
        for path in its:
            ending = PurePosixPath(path).suffix.lower()
            text = parse_text((raw_dir / path).read_bytes(), ending, str(raw_dir / path))
            texts.setdefault(("", stem_of(path)), {})[ending] = text
    chosen, notes = choose(texts)
    of_picture = {picture: chosen.get(("", stem_of(its[0]))) for picture, its in pairs.items()}
    rows = [Row(picture, text.split, text.captions) for picture, text in of_picture.items() if text]
    if not rows:
        raise ValueError(f"{raw_dir}: no text says anything of its picture: {'; '.join(notes)}")
    rows, more = with_folder_splits(rows)
    lonely = [path for path in walk_files(raw_dir) if path.lower().endswith(TEXT_ENDINGS)]
    return rows, [*notes, *more, *_pairing(pairs, lonely), *archives.unread(raw_dir, [])]


def _pairing(pairs: Mapping[str, Sequence[str]], texts: Sequence[str]) -> list[str]:
    """Notes of how pictures and texts were paired. texts: all there are."""
    notes = []
    times = Counter(its[0] for its in pairs.values())
    if shared := [text for text, count in times.items() if count > 1]:
        notes.append(f"{cases(shared, 'text')} for several pictures of that name")
    if nearly := [f"{its[0]} of {path}" for path, its in pairs.items() if stem_of(path) != stem_of(its[0])]:
        notes.append(f"{cases(nearly, 'text')} of nearly the picture's name: in a folder beside, in other case or "
                     "Unicode, or a.jpg.txt")  # fmt: skip
    used = {path for its in pairs.values() for path in its}
    if lonely := [path for path in texts if path not in used]:
        notes.append(f"{cases(lonely, 'text')} without a picture of the same name, left out")
    return notes


def with_folder_splits(rows: Sequence[Row], scratch: Path | None = None) -> Rows:
    """Rows without a split get that of their folder, where the folders part all of them into train and others.

    scratch: as on_disk.rows takes it.
    """
    found = on_disk.rows(scratch, (row.split or folder_split(row.file_name) for row in rows))
    if all(row.split for row in rows) or not any(found):
        return rows, []
    if all(found) and "train" in found and any(split != "train" for split in found):
        return on_disk.rows(scratch, (row._replace(split=its) for row, its in zip(rows, found, strict=True))), []
    inside = sum(map(bool, found))
    return rows, [f"{inside:,} of {len(rows):,} pictures lie in folders called like splits, but not all, or not in "
                     "train and another: the folders are not taken for splits"]


def folder_split(path: str) -> str | None:
    """The split that a folder in a path is called by: train, val2014, test_images."""
    folders: Iterable[str] = PurePosixPath(path).parts[:-1]
    found = [match[1] for folder in folders if (match := re.fullmatch(SPLIT_FOLDER, folder, re.IGNORECASE))]
    return plain_split(found[-1]) if found else None
