"""Texts that go with one picture each by their name: a.txt, a.caption or a.json beside a.jpg, in folders and in tars.

Of several texts of one picture the first of TEXT_ENDINGS that says something is taken. Lines of a .txt or .caption:
after a blank line or an end mark (. ! ?) another caption begins; a line goes on with the one before where that ends in
a comma, or where it begins in lower case in a text that begins with a capital; where none of this tells, the texts of
the whole set do: do more than half of such lines begin with a word that texts begin with? And where all texts have the
same number of lines, three or more, and half of the lines have end marks, each line is a caption. Notes say what was
done.
"""

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from nanocaption.base.files import PICTURE_SUFFIXES, cases, walk_files
from nanocaption.prepare import archives
from nanocaption.prepare.caption_files import CAPTION_KEYS, Row, Rows, Source, plain_split
from nanocaption.prepare.names import folded

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
    except ValueError as error:
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


def choose(texts: Mapping[Key, Mapping[str, Text]]) -> tuple[dict[Key, Text], list[str]]:
    """Of the texts of each picture, by their endings, the one that counts, its lines made captions; and notes."""
    chosen: dict[Key, Text] = {}
    lined: set[Key] = set()  # whose captions are still lines
    both, differ, silent = [], [], []
    for key, by_ending in texts.items():
        saying = [ending for ending in TEXT_ENDINGS if ending in by_ending and by_ending[ending].captions]
        split = next((text.split for text in by_ending.values() if text.split), None)
        taken = saying[0] if saying else min(by_ending, key=TEXT_ENDINGS.index)
        if taken == ".json" and not saying:
            silent.append(f"{key[1]}.json")
            continue
        chosen[key] = Text(by_ending[taken].captions, split)
        if taken != ".json":
            lined.add(key)
        if len(saying) > 1:
            both.append(f"{key[1]}{taken}")
            if len({" ".join(" ".join(map(str, by_ending[ending].captions)).split()) for ending in saying}) > 1:
                differ.append(key[1])
    notes = []
    if both:
        notes.append(f"{cases(both, 'picture')} with several texts: .json goes before .caption before .txt; "
                     + (f"in {cases(differ, 'picture')} they differ" if differ else "all say the same"))
    if silent:
        notes.append(f"{cases(silent, '.json file')} without any of the keys {', '.join(JSON_KEYS)}")
    lines, more = captions_of_lines({key: chosen[key].captions for key in chosen if key in lined})
    return {key: text._replace(captions=lines.get(key, text.captions)) for key, text in chosen.items()}, notes + more


def captions_of_lines(texts: Mapping[Key, list[str]]) -> tuple[dict[Key, list[str]], list[str]]:
    """Paragraphs -> captions by the rule above, and notes with the first case."""
    paragraphs_of_all = [paragraph for paragraphs in texts.values() for paragraph in paragraphs]
    open_breaks = [line for paragraph in paragraphs_of_all for before, line in itertools.pairwise(_lines(paragraph))
                   if _goes_on(paragraph, before, line) is None]  # fmt: skip
    even = _one_a_line(texts)
    starts = {_start(paragraph) for paragraph in paragraphs_of_all}
    apart = 2 * sum(_start(line) in starts for line in open_breaks) > len(open_breaks)
    captions: dict[Key, list[str]] = {}
    joined, several = [], []
    for key, paragraphs in texts.items():
        captions[key] = []
        for paragraph in paragraphs:
            lines = _lines(paragraph)
            captions[key].append(lines[0])
            for before, line in itertools.pairwise(lines):
                goes_on = _goes_on(paragraph, before, line)
                if not even and (goes_on or (goes_on is None and not apart)):
                    captions[key][-1] += f" {line}"
                    joined.append(key[1])
                else:
                    captions[key].append(line)
        if len(captions[key]) > 1:
            several.append(key[1])
    notes = []
    if joined:
        first = next(key for key in captions if key[1] == joined[0])
        notes.append(f"{cases([*dict.fromkeys(joined)], 'text')} with a caption wrapped over several lines, joined; "
                     f"the first: {captions[first][0][:80]!r}")
    if several:
        notes.append(f"{cases(several, 'text')} with several captions, one a line")
    return captions, notes


def _one_a_line(texts: Mapping[Key, list[str]]) -> bool:
    """Whether all texts have the same number of lines, three or more, half of the lines with an end mark."""
    lines = [[line for paragraph in paragraphs for line in _lines(paragraph)] for paragraphs in texts.values()]
    numbers = {len(its) for its in lines}
    before = [line for its in lines for line in its[:-1]]
    marked = [line for line in before if END_MARK.search(line)]
    return len(lines) > 2 and len(numbers) == 1 and min(numbers) > 2 and 2 * len(marked) >= len(before)


def _lines(paragraph: str) -> list[str]:
    return [line.strip() for line in paragraph.split("\n") if line.strip()]


def _goes_on(paragraph: str, before: str, line: str) -> bool | None:
    """Whether `line` goes on with the one before it; None where the two do not tell."""
    if END_MARK.search(before):
        return False
    if GOES_ON.search(before) or (line[0].islower() and paragraph[0].isupper()):
        return True
    return None


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
    """picture -> its texts: of the same path but for the ending, case and Unicode, else in a sibling folder."""
    pictures = [path for path in paths if path.lower().endswith(PICTURE_SUFFIXES)]
    left: dict[str, list[str]] = {}
    for path in paths:
        if path.lower().endswith(TEXT_ENDINGS):
            left.setdefault(stem_of(path), []).append(path)
    pairs: dict[str, list[str]] = {}
    for key in (str, folded, lambda stem: _without_folder(folded(stem))):
        stems: dict[str, set[str]] = {}
        for stem in left:
            stems.setdefault(key(stem), set()).add(stem)
        bare = [picture for picture in pictures if picture not in pairs]
        alike = Counter(key(stem) for stem in {stem_of(picture) for picture in bare})
        for picture in bare:
            mine = key(stem_of(picture))
            if alike[mine] == 1 and len(stems.get(mine, ())) == 1:
                pairs[picture] = [text for stem in stems[mine] for text in left[stem]]
        for stem in {stem_of(text) for its in pairs.values() for text in its}:
            left.pop(stem, None)
    return pairs


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
    served = Counter(its[0] for its in pairs.values())
    if shared := [text for text, count in served.items() if count > 1]:
        notes.append(f"{cases(shared, 'text')} for several pictures of that name")
    if nearly := [f"{its[0]} of {path}" for path, its in pairs.items() if stem_of(path) != stem_of(its[0])]:
        notes.append(f"{cases(nearly, 'text')} in a folder beside the pictures', or in other case or Unicode")
    used = {path for its in pairs.values() for path in its}
    if lonely := [path for path in walk_files(raw_dir) if path.lower().endswith(TEXT_ENDINGS) and path not in used]:
        notes.append(f"{cases(lonely, 'text')} without a picture of the same name, left out")
    rows, more = with_folder_splits(rows)
    return rows, [*notes, *more, *archives.unread(raw_dir, [])]


def with_folder_splits(rows: Sequence[Row]) -> Rows:
    """Rows without a split get that of their folder, where the folders part all of them into train and others."""
    found = [row.split or folder_split(row.file_name) for row in rows]
    if all(row.split for row in rows) or not any(found):
        return [*rows], []
    if all(found) and "train" in found and len(set(found)) > 1:
        return [row._replace(split=split) for row, split in zip(rows, found, strict=True)], []
    inside = sum(map(bool, found))
    return [*rows], [f"{inside:,} of {len(rows):,} pictures lie in folders called like splits, but not all, or not in "
                     "train and another: the folders are not taken for splits"]


def folder_split(path: str) -> str | None:
    """The split that a folder in a path is called by: train, val2014, test_images."""
    folders: Iterable[str] = PurePosixPath(path).parts[:-1]
    found = [match[1] for folder in folders if (match := re.fullmatch(SPLIT_FOLDER, folder, re.IGNORECASE))]
    return plain_split(found[-1]) if found else None
