"""Which files of a folder hold questions about pictures, and one record a picture from them.

As layouts.py for captions: parquet with the pictures inside (question_parquet.py), otherwise JSON, JSON lines and
tables of any name (question_files.py), all of them one set. Splits are the files' own, told by their names, or drawn by
picture.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from nanocaption.base.files import cases
from nanocaption.data.prepared import Record
from nanocaption.prepare import archives, joining, layouts, question_files, question_parquet
from nanocaption.prepare.caption_files import NotThereError, Rows, Source

ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
FORM = ('parquet with image_bytes, question, answer; VQA\'s two files; GQA\'s, TextVQA\'s, VizWiz\'s or LLaVA\'s JSON; '
        'or [{"image": "a.jpg", "question": "...", "answer": "..."}]')  # fmt: skip


def find(raw_dir: Path) -> Source:
    """The questions that lie in `raw_dir` or below. Raises NotThereError where there are none of a known layout."""
    raw_dir = Path(raw_dir)
    if not raw_dir.exists():
        raise ValueError(f"RAW_DATA_DIR is {str(raw_dir)!r}: no such folder; give the one with pictures and questions")
    shards = archives.find_shards(raw_dir, (".parquet",))
    if packed := [shard for shard in shards if question_parquet.holds_questions(shard)]:
        read = functools.partial(question_parquet.read_shards, raw_dir, packed)
        unpack = functools.partial(question_parquet.unpack_shards, packed)
        return Source("parquet of questions", f"{cases([path.name for path in packed], 'shard')} found",
                      f"{raw_dir}, {cases([path.name for path in packed], 'shard')}", packed, read, unpack)  # fmt: skip
    kinds = _kinds(raw_dir)
    if not any(kind != "VQA annotations" for kind in kinds.values()):
        raise NotThereError(f"{raw_dir} holds no questions in a known layout: give it {FORM}")
    names = [path.relative_to(raw_dir).as_posix() for path in kinds]
    kind = next(kind for kind in kinds.values() if kind != "VQA annotations")
    return Source(kind, f"{layouts.all_or_cases(names)} stand in {raw_dir}", layouts.all_or_cases([*map(str, kinds)]),
                  [*kinds], functools.partial(_read_files, raw_dir, kinds))  # fmt: skip


def _kinds(raw_dir: Path) -> dict[Path, str]:
    if raw_dir.is_file():
        return {}
    paths = [raw_dir / name for name in layouts.caption_candidates(raw_dir) if name.lower().endswith(ENDINGS)]
    if len(paths) > layouts.MOST_LOOKED_AT:
        raise NotThereError(f"{raw_dir} holds {cases([path.name for path in paths], 'file')}, more than are looked at "
                            "one by one; put the questions into one file")
    return {path: kind for path in paths if (kind := question_files.kind_of(path)) is not None}


def _read_files(raw_dir: Path, kinds: dict[Path, str]) -> Rows:
    readers = {path.relative_to(raw_dir).as_posix(): read for path, read in question_files.readers_of(kinds).items()}
    return joining.read_files(raw_dir, readers, may_draw=True)


def read(source: Source, seed: int) -> layouts.Contents:
    """The records of a source, each with its questions as they stand and no captions.

    Raises ValueError with one line as layouts.read does, and where no picture has a question.
    """
    rows, notes = source.read()
    names, splits, more = layouts.named_rows(rows, seed, source.origin)
    records: list[Record] = [
        {"file_name": name, "split": split, "captions": [], "questions": row.captions}
        for name, split, row in zip(names, splits, rows, strict=True)
    ]
    if not records:
        raise ValueError(f"{source.origin} gives no picture with a question: is this the right file?")
    absent = [split for split in layouts.SPLITS if split not in splits]
    told = [f"the source has no {' and no '.join(absent)} pictures, kept as it is"] * bool(absent)
    return layouts.Contents(source, records, notes + more + told, drawn=any(not row.split for row in rows))


def digest(raw_dir: Path) -> str:
    """sha256 over the files that `find` names: has the raw set changed? Of parquet names, sizes and both ends."""
    total = hashlib.sha256()
    try:
        files: Sequence[Path] = find(raw_dir).files
    except NotThereError:
        files = archives.find(raw_dir)
    for path in files:
        if path.suffix.lower() in ENDINGS:
            total.update(hashlib.sha256(path.read_bytes()).digest())
        else:
            total.update(layouts.ends_of(path))
    return total.hexdigest()


def is_question_file(name: str) -> bool:
    """Whether a file of this name may hold questions: what of an archive is unpacked to look."""
    return name.lower().endswith((*ENDINGS, ".parquet"))
