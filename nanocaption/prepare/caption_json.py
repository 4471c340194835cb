"""Readers of JSON: path -> one Row per picture, and notes. Which shape a file has is told by its content (SHAPES)."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

from nanocaption.base.files import PICTURE_SUFFIXES, cases
from nanocaption.prepare.caption_files import (
    CAPTION_KEYS,
    FILE_NAME_KEYS,
    NUMBERED,
    SPLIT_WORDS,
    Row,
    Rows,
    merged,
    numbered,
    read_text,
    refuse,
    refuse_duplicates,
    texts_of,
    without_marked,
)
from nanocaption.prepare.caption_tables import OF_LABEL_STUDIO, upload_name

ASSISTANTS = ("gpt", "assistant", "model", "chatbot", "bot")  # who gives the caption in a conversation


class Shape(NamedTuple):
    """A kind of JSON file."""

    name: str
    fits: Callable[[Any], bool]
    rows: Callable[[Any, Path], Rows]


def read_json(path: Path) -> Rows:
    data = load(path)
    try:
        return shape_of(data, path).rows(data, path)
    except RecursionError:
        raise ValueError(f"{path} is nested too deep for JSON of captions") from None


def is_json(path: Path) -> str:
    """The name of its layout for a JSON file of captions of any name. Raises ValueError where it is none."""
    data = load(path)
    if not (any(data.values()) if isinstance(data, dict) else data):
        raise ValueError(f"{path.name} is empty")
    try:
        return shape_of(data, path).name
    except RecursionError:
        raise ValueError(f"{path} is nested too deep for JSON of captions") from None


def shape_of(data: Any, path: Path) -> Shape:
    """Raises ValueError with the layouts that are known."""
    shape = next((shape for shape in SHAPES if shape.fits(data)), None)
    if shape is None:
        raise ValueError(f"{path} is not in Karpathy's layout: "
                         '{"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}, and is not in COCO\'s '
                         'layout: {"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, '
                         '...]}, nor a list [{"file_name", "caption"}, ...] or a map {"a.jpg": "caption"}')
    return shape


def load(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        if entries := in_lines(text):
            return entries
        raise ValueError(f"{path} is not whole JSON ({error}); fetch or unpack it again") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deep for JSON of captions") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object with a key twice would keep the last value only, without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the key {twice[:80]!r} twice; keep one, with all captions in a list")
    return found


def in_lines(text: str) -> list[Any] | None:
    """The objects of a file that is JSON lines in spite of its name."""
    try:
        entries = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError:
        return None
    return entries if have(entries) else None


def have(entries: object, *keys: str) -> TypeGuard[list[dict[str, Any]]]:
    """Whether `entries` is a list of JSON objects that all have these keys."""
    return isinstance(entries, list) and all(isinstance(entry, dict) and entry.keys() >= set(keys) for entry in entries)


def is_karpathy(data: Any) -> bool:
    images = data.get("images") if isinstance(data, dict) else None
    return have(images, "filename", "sentences") and all(isinstance(image["sentences"], list) for image in images)


def karpathy_rows(data: Any, path: Path) -> Rows:
    """Sets other than COCO have no cocoid: then imgid is the number of the picture."""
    key = "cocoid" if any("cocoid" in image for image in data["images"]) else "imgid"
    return [
        Row(image["filename"], image.get("split"),
            [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in image["sentences"]],
            id_of(image.get(key)), folder=image.get("filepath"))
        for image in data["images"]
    ], []  # fmt: skip


def is_coco(data: Any) -> bool:
    return (isinstance(data, dict) and have(data.get("images"), "id", "file_name")
            and have(data.get("annotations"), "image_id", "caption"))  # fmt: skip


def coco_rows(data: Any, path: Path) -> Rows:
    """COCO's files, VizWiz (marked ones are left out), nocaps (domains), STAIR (caption, not tokenized_caption)."""
    images, annotations = data["images"], data["annotations"]
    refuse_duplicates([id_text(image["id"]) for image in images], f"{path}, images")
    refuse_duplicates([id_text(entry["id"]) for entry in annotations if "id" in entry], f"{path}, annotations")
    captions: dict[str, list[Any]] = {id_text(image["id"]): [] for image in images}
    strangers = [id_text(entry["image_id"]) for entry in annotations if id_text(entry["image_id"]) not in captions]
    refuse(strangers, "caption", path, "of pictures that are not in its list of images")
    used, notes = without_marked(annotations, path)
    for entry in used:
        captions[id_text(entry["image_id"])].append(entry["caption"])
    bare = [str(image["file_name"]) for image in images if not captions[id_text(image["id"])]]
    if bare:
        notes.append(f"{path.name}: {cases(bare, 'picture')} without a caption, left out")
    return [Row(image["file_name"], image.get("split"), texts, id_of(image["id"]), image.get("domain"))
            for image in images if (texts := captions[id_text(image["id"])])], notes  # fmt: skip


def id_text(number: Any) -> str:
    """By what ids are compared: 7, "7" and 7.0 are one."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def id_of(number: Any) -> int | str | None:
    """An id as it stands in the file; what is neither a whole number nor text is none."""
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number if type(number) in (int, str) and number != "" else None


def is_textcaps(data: Any) -> bool:
    entries = data.get("data") if isinstance(data, dict) else None
    return have(entries, "image_id") and any({"caption_str", "reference_strs"} & entry.keys() for entry in entries)


def textcaps_rows(data: Any, path: Path) -> Rows:
    """One entry a caption, each with the list of all references of its picture where the split has them."""
    rows: dict[str, Row] = {}
    bare = []
    for entry in data["data"]:
        references, caption = entry.get("reference_strs"), entry.get("caption_str")
        name = PurePosixPath(entry.get("image_path") or f"{entry['image_id']}.jpg").name
        if not references and caption is None:
            bare.append(name)
            continue
        row = rows.setdefault(name, Row(name, entry.get("set_name"), [], id_of(entry["image_id"])))
        row.captions.extend(references if references and not row.captions else [] if references else [caption])
    return list(rows.values()), [f"{path.name}: {cases(bare, 'object')} without a caption, left out"] * bool(bare)


def is_label_studio(data: Any) -> bool:
    return have(data, "data") and any({"annotations", "completions"} & entry.keys() for entry in data)


def label_studio_rows(data: Any, path: Path) -> Rows:
    """Tasks with their annotations; each text of each annotator is a caption."""
    bare, rows = [], []
    for number, task in enumerate(data, start=1):
        name = f"task {task.get('id', number)}"
        if not isinstance(task["data"], dict):
            raise ValueError(f"{path}, {name}: its data is no object that names a picture")
        areas = text_areas(task)
        known = next((key for key in CAPTION_KEYS if key in areas), next(iter(areas), None))
        if known is None:
            bare.append(name)
            continue
        if len(areas) > 1 and known not in CAPTION_KEYS:
            raise ValueError(f"{path}, {name} has texts called {', '.join(areas)}: call the one of captions caption")
        rows.append(Row(name_in(task["data"]), task["data"].get("split"), areas[known]))
    return merged(rows, path), [f"{path.name}: {cases(bare, 'task')} without an annotation, left out"] * bool(bare)


def text_areas(task: dict[str, Any]) -> dict[str, list[Any]]:
    """The texts that all annotators of a task wrote, by the name of the field."""
    areas: dict[str, list[Any]] = {}
    for done in _objects(task.get("annotations") or task.get("completions")):
        for result in [] if done.get("was_cancelled") else _objects(done.get("result")):
            value = result.get("value")
            text = value.get("text") if isinstance(value, dict) else None
            if text is not None and result.get("type", "textarea") == "textarea":
                areas.setdefault(str(result.get("from_name")), []).extend(text if isinstance(text, list) else [text])
    return areas


def _objects(entries: object) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def name_in(entry: dict[str, Any]) -> Any:
    """The picture that an object names; None where it names none."""
    name = next((entry[key] for key in FILE_NAME_KEYS[:-1] if key in entry), None)
    if name is None:
        images = entry.get("images", [])  # beside messages; one conversation about several pictures is no caption
        name = images[0] if isinstance(images, list) and len(images) == 1 else None
    if name is None:
        name = next((text for key, text in entry.items() if isinstance(text, str) and key not in CAPTION_KEYS and
                     text.lower().endswith(PICTURE_SUFFIXES)), entry.get("image_id"))  # fmt: skip
    if isinstance(name, dict):
        name = name.get("path") or name.get("file_name")
    return upload_name(name) if isinstance(name, str) else name


def is_list(data: Any) -> bool:
    entries = entries_in(data)
    return have(entries) and any(entry_row(entry) is not None for entry in entries)


def entries_in(data: Any) -> Any:
    """The list itself, or the only one of captions that an object holds."""
    if not isinstance(data, dict):
        return data
    lists = [value for value in data.values()
             if have(value) and any(entry_row(entry) is not None for entry in value[:100])]  # fmt: skip
    return lists[0] if len(lists) == 1 else None


def list_rows(data: Any, path: Path) -> Rows:
    return rows_of_entries([(f"entry {number}", entry) for number, entry in enumerate(entries_in(data), start=1)], path)


def rows_of_entries(entries: Iterable[tuple[str, Any]], path: Path) -> Rows:
    """Objects that each name a picture and its captions, as `entry_row` knows them. entries: (where it stands, object).

    Several entries with one caption each may be of one picture; lists of captions stand alone. Of VizWiz's
    kind, marked ones are left out; so are entries of Label Studio without an annotation, and conversations without
    picture or answer.
    """
    entries = list(entries)
    kept, notes = without_marked([entry for _, entry in entries if isinstance(entry, dict)], path)
    wanted = {id(entry) for entry in kept}
    rows, singles, bare, places = [], [], [], []
    for where, entry in entries:
        row = entry_row(entry)
        if row is None:
            known = isinstance(entry, dict) and (OF_LABEL_STUDIO & entry.keys() or conversation_in(entry) is not None)
            if not known:
                raise ValueError(f'{path}, {where}: expected an object with "file_name" (or "image") '
                                 'and "caption" (or "captions")')
            bare.append(where)
        elif id(entry) not in wanted:
            continue
        elif isinstance(row.captions[0], list):
            rows.append(row._replace(captions=row.captions[0]))
        else:
            singles.append(row)
            places.append(where)
    texts, more = texts_of([(where, row.captions[0]) for where, row in zip(places, singles, strict=True)], path)
    singles = [row._replace(captions=captions) for row, captions in zip(singles, texts, strict=True)]
    if bare:
        notes.append(f"{path.name}: {cases(bare, 'object')} without a picture or a caption, left out")
    return rows + merged(singles, path), notes + more


def entry_row(entry: Any) -> Row | None:
    """An object as a row of one cell, which may be a list; None where it names no picture or no caption."""
    if not isinstance(entry, dict):
        return None
    cell, talk = cell_of(entry), conversation_in(entry) or []
    named = (name_in(entry), picture_in(talk), entry.get("url"), entry.get("image_url"))
    name = next((name for name in named if name is not None), None)
    if name is None or cell is None:
        return None
    of_id = id_of(name) if name is entry.get("image_id") else None
    return Row(name if of_id is None else str(name), entry.get("split"), cell, of_id, entry.get("domain"))


def cell_of(entry: dict[str, Any]) -> list[Any] | None:
    """What an object has as its caption, in a list; None where it has nothing of that name, not even null."""
    if key := next((key for key in CAPTION_KEYS if key in entry), None):
        return [entry[key]]
    if several := numbered(filter(NUMBERED.fullmatch, entry)):
        return [[entry[key] for key in several if entry[key] not in ("", None)]]
    answer = answer_in(conversation_in(entry) or [])
    return None if answer is None else [answer]


def conversation_in(entry: dict[str, Any]) -> list[dict[str, Any]] | None:
    talk = entry.get("conversations", entry.get("messages"))
    return talk if have(talk) else None


def answer_in(talk: Sequence[dict[str, Any]]) -> str | None:
    """The first text of the assistant, without its "<image>"."""
    for turn in talk:
        if turn.get("from", turn.get("role")) in ASSISTANTS:
            said = turn.get("value", turn.get("content"))
            parts = said if isinstance(said, list) else [said]
            texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
            said = " ".join(text for text in texts if isinstance(text, str))
            return re.sub(r"\s*<image>\s*", " ", said).strip() or None
    return None


def picture_in(talk: Sequence[dict[str, Any]]) -> Any:
    """The picture that a part of a message names: {"type": "image", "image": "a.jpg"}, or "image_url"."""
    parts = [part for turn in talk if isinstance(turn.get("content"), list) for part in turn["content"]]
    named = [part.get("image", part.get("image_url", part.get("path"))) for part in parts
             if isinstance(part, dict) and str(part.get("type", "")).startswith("image")]  # fmt: skip
    name = named[0] if len(named) == 1 else None
    return name.get("url") if isinstance(name, dict) else name


def is_map(data: Any) -> bool:
    """Whether the names of an object are pictures, or, without an ending, each has a list of sentences."""
    if not isinstance(data, dict) or any(name.lower().endswith(PICTURE_SUFFIXES) for name in data):
        return isinstance(data, dict)
    texts = [text for value in data.values() for text in (value if isinstance(value, list) else [None])]
    return have_texts(texts) and any(" " in text.strip() for text in texts)


def have_texts(texts: list[Any]) -> TypeGuard[list[str]]:
    return all(isinstance(text, str) for text in texts)


def map_rows(data: Any, path: Path) -> Rows:
    texts, notes = texts_of([*data.items()], path)
    splits = [about.get("split") if isinstance(about, dict) else None for about in data.values()]
    return [Row(name, split, captions) for name, split, captions in zip(data, splits, texts, strict=True)], notes


def is_by_split(data: Any) -> bool:
    return isinstance(data, dict) and bool(data) and all(
        re.fullmatch(SPLIT_WORDS, name.lower()) and any(shape.fits(part) for shape in SHAPES)
        for name, part in data.items())  # fmt: skip


def split_rows(data: Any, path: Path) -> Rows:
    """{"train": one of the other shapes, "val": ...}"""
    rows: list[Row] = []
    notes: list[str] = []
    for split, part in data.items():
        its, more = shape_of(part, path).rows(part, path)
        rows += [row if row.split else row._replace(split=split) for row in its]
        notes += more
    return rows, notes


SHAPES = (
    Shape("Karpathy JSON", is_karpathy, karpathy_rows),
    Shape("COCO captions JSON", is_coco, coco_rows),
    Shape("TextCaps JSON", is_textcaps, textcaps_rows),
    Shape("Label Studio JSON", is_label_studio, label_studio_rows),
    Shape("JSON by split", is_by_split, split_rows),
    Shape("JSON list", is_list, list_rows),
    Shape("JSON map", is_map, map_rows),
)


def read_jsonl(path: Path) -> Rows:
    """One object a line, as in a JSON list."""
    entries = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                entries.append((f"line {number}", json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not a JSON object ({error})") from None
    return rows_of_entries(entries, path)


def is_jsonl(path: Path) -> str:
    """As is_json, by the first line."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = next((line for line in file if line.strip()), "")
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if entry_row(entry) is None:
        raise ValueError(f'{path.name} has no objects with "file_name" (or "image") and "caption" in its lines')
    return "captions.jsonl"


def read_metadata_parquet(path: Path) -> Rows:
    """metadata.parquet of a Hugging Face image folder: rows as in metadata.jsonl."""
    from nanocaption.data.parquet import batches, open_parquet

    with open_parquet(path) as file:
        rows = (row for batch in batches(file, path, file.schema_arrow.names) for row in batch.to_pylist())
        return rows_of_entries([(f"row {number}", row) for number, row in enumerate(rows, start=1)], path)
