"""Raw data -> data/<name>/, a prepared data set.

    data/<name>/images/         the pictures
    data/<name>/captions.json   {"images": [{"file_name", "split", "captions": [...],
                                             of the demo set "scene", of COCO "image_id"}, ...]}
    data/<name>/report.json, report.png   what was kept, converted, refused and why; sizes and lengths (check.py)
    data/<name>/manifest.json   counts, source, licence, sha256 of captions.json; written last

A set counts as whole only when its manifest fits its captions.json and every picture is there; a run that was cut off
leaves no manifest, and the next run goes on from the pictures already in place. Three kinds of source: "demo" is drawn
here, "flickr30k" is downloaded, and any name can be read from a folder of your own (layouts.py says which layouts).
Several names with commas between are mixed (mix.py). With STREAM the pictures stay in their shards, and stream/ says
where (streamed.py).
"""

import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from tqdm import tqdm

from nanocaption.base import cli, on_disk
from nanocaption.base.files import cases, walk_files
from nanocaption.base.settings import Settings
from nanocaption.data import prepared
from nanocaption.data.prepared import Manifest, Record
from nanocaption.data.questions import questions_of
from nanocaption.data.shards import Packed, Shard, check_shards, is_streamed, read_shards
from nanocaption.prepare import (
    archives,
    changes,
    check,
    check_report,
    flickr30k,
    layouts,
    picture_files,
    question_sets,
    splits,
    streamed,
)
from nanocaption.prepare.caption_files import NotThereError
from nanocaption.prepare.mix import prepare_mix
from nanocaption.prepare.store import alone, begin, bring, counts_line, in_images, look_at_space, write_set

DEMO_COUNTS = {"train": 2000, "val": 200, "test": 200}
DEMO_LICENCE = "drawn by this project's own code; use it as you like"
UNKNOWN = ("is not in {} and not a set that can be made here (demo, flickr30k): to read your own pictures and captions "
           "under that name, set RAW_DATA_DIR to their folder")  # fmt: skip
FOLDER_LICENCE = "not known: the terms of whoever owns the pictures and captions"


def prepare_from(settings: Settings, *, compare: bool = True, remake: bool = False) -> Path:
    """`prepare` as the settings of config.py ask for it."""
    return prepare(
        settings.DATASET,
        Path(settings.DATA_DIR),
        stream=settings.RAW_DATA_DIR if settings.STREAM else None,
        raw_dir=raw_dir_of(settings),
        seed=settings.DATA_SEED,
        cutoff=settings.DATA_CUTOFF,
        hf_dataset_id=settings.HF_DATASET_ID,
        hf_revision=settings.HF_DATASET_REVISION,
        rules=rules_of(settings),
        compare=compare,
        remake=remake,
        questions=settings.QUESTIONS,
    )


def raw_dir_of(settings: Settings) -> Path | None:
    return Path(settings.RAW_DATA_DIR) if settings.RAW_DATA_DIR else None


def rules_of(settings: Settings) -> check.Rules:
    return check.Rules(settings.CAPTION_CASE, settings.MAX_BAD_FRACTION, settings.NUM_WORKERS)


def look_first(settings: Settings) -> None:
    """What `prepare_from` would refuse of names, folders and caption files, before anything is made or downloaded.

    It takes seconds and opens no picture. Raises ValueError with one line, also where RAW_DATA_DIR is no longer what a
    whole set was made from.
    """
    data_dir, raw_dir = Path(settings.DATA_DIR), raw_dir_of(settings)
    for name in check_names(settings.DATASET, data_dir, raw_dir):
        folder = folder_of(name, data_dir)
        if settings.STREAM or is_streamed(folder):
            if prepared.is_whole(folder):
                stream = settings.RAW_DATA_DIR if settings.STREAM else None
                take_stream(folder, prepared.verify(folder), raw_dir, stream, compare=True)
            else:
                streamed.expanded(settings.RAW_DATA_DIR or "")
        elif prepared.is_whole(folder):
            if problem := changed_since(folder, prepared.verify(folder), raw_dir, rules_of(settings)):
                raise ValueError(problem)
        elif raw_dir is not None:
            look_at_raw(raw_dir, settings.DATA_SEED, settings.QUESTIONS)


def look_at_raw(raw_dir: Path, seed: int, questions: bool = False) -> None:
    """Read the captions of a folder, or its questions, and find their pictures; of packed ones see what they are."""
    room = question_sets if questions else layouts
    try:
        source = room.find(raw_dir)
        if source.unpack is None:
            picture_files.find_pictures(raw_dir, [record["file_name"] for record in room.read(source, seed).records])
    except ValueError as error:
        if not isinstance(error, NotThereError) or not archives.find(raw_dir):
            if hint := hint_of_questions(raw_dir, questions):
                raise ValueError(f"{error}{hint}") from None
            raise


def hint_of_questions(raw_dir: Path, questions: bool) -> str:
    """What to add where a folder has no captions but questions."""
    try:
        found = None if questions else question_sets.find(raw_dir)
    except ValueError:
        found = None
    return f". It holds questions ({found.name}): read them with QUESTIONS = True (--questions)" if found else ""


def check_names(dataset: str, data_dir: Path, raw_dir: Path | None) -> list[str]:
    """The sets that DATASET names. Raises ValueError where one is neither there nor can be made."""
    names = [part.name for part in prepared.parse_mix(dataset)] if prepared.is_mix(dataset) else [dataset]
    if raw_dir is not None and prepared.is_mix(dataset):
        raise ValueError(f"RAW_DATA_DIR is {str(raw_dir)!r} but DATASET = {dataset!r} names several sets: prepare the "
                         "one in that folder by itself first, then name it without RAW_DATA_DIR")
    if raw_dir is not None and dataset == "demo":
        raise ValueError(f"RAW_DATA_DIR is {str(raw_dir)!r} but DATASET is 'demo', which is drawn here: give the set "
                         "in that folder a name of its own (--dataset mine), or set RAW_DATA_DIR to none")
    for name in names:
        made_here = name in ("demo", "flickr30k") or raw_dir is not None
        if not folder_of(name, data_dir).exists() and not made_here:
            raise ValueError(f"DATASET = {name!r} {UNKNOWN.format(data_dir)}")
    return names


def prepare(
    name: str,
    data_dir: Path,
    *,
    raw_dir: Path | None = None,
    seed: int = 1,
    cutoff: int | None = None,
    hf_dataset_id: str = flickr30k.OFFICIAL_ID,
    hf_revision: str = "main",
    rules: check.Rules = check.DEFAULT_RULES,
    compare: bool = True,
    remake: bool = False,
    stream: str | None = None,
    questions: bool = False,
) -> Path:
    """Make the data set `name` below `data_dir`, unless it is whole already, and return its folder.

    name: the set's folder, or several prepared ones with weights ("flickr30k,mine*2", see data/prepared.py).
    raw_dir: folder or archive with the user's own pictures and captions; read, never changed.
    seed: draws the demo set, and the splits of a folder that brings none (DATA_SEED).
    cutoff: only the first `cutoff` pictures of each split; None = all.
    rules: how pictures and captions are checked and cleaned (check.py).
    compare: whether a whole set must be what raw_dir holds now; False: it is taken as it is (a resume needs no more).
    remake: make a set that is whole anew from raw_dir. Pictures keep the splits that were drawn for them.
    stream: the shards, as RAW_DATA_DIR names them, in which the pictures are to stay.
    questions: whether raw_dir holds questions and answers, not captions.
    Raises ValueError with one line for unknown names, unreadable sources, too many bad pictures or captions, and a
    whole set made from something else.
    """
    check_names(name, data_dir, raw_dir)
    if remake and raw_dir is None:
        raise ValueError("--remake makes a set of your own anew from RAW_DATA_DIR, which is none (DATASET = "
                         f"{name!r}): give the folder with its pictures and captions, and the name of one set")
    if prepared.is_mix(name):
        parts = prepared.parse_mix(name)
        for part in sorted(parts, key=lambda part: part.name in ("demo", "flickr30k")):  # a missing one is told first
            prepare(part.name, data_dir, seed=seed, cutoff=cutoff, hf_dataset_id=hf_dataset_id,
                    hf_revision=hf_revision, rules=rules, compare=compare)  # fmt: skip
        return prepare_mix(folder_of(prepared.folder_name(name), data_dir), parts, rules.workers)
    folder = folder_of(name, data_dir)

    def take() -> bool:
        """Whether the set is whole, and what it should be."""
        manifest = whole_manifest(folder, cutoff, seed, rules.caption_case)
        if manifest is None:
            return False
        if stream is not None or "stream" in manifest:
            take_stream(folder, manifest, raw_dir, stream, compare)
        else:
            take_whole(folder, manifest, raw_dir, rules, compare)
        return True

    if not remake and take():
        return folder
    with alone(folder) as waited:
        if waited and not remake and take():
            return folder
        if stream is not None:
            return prepare_stream(folder, stream, seed, cutoff, rules)
        if name == "demo":
            return prepare_demo(folder, seed, cutoff, rules)
        if raw_dir is not None:
            return prepare_folder(folder, raw_dir, seed, cutoff, rules, remake, questions)
        if name == "flickr30k":
            return download_flickr30k(folder, hf_dataset_id, hf_revision, cutoff, rules)
        raise ValueError(f"DATASET = {name!r} {UNKNOWN.format(data_dir)}")


def prepare_flickr30k(
    data_dir: Path = Path("data"),
    hf_dataset_id: str = flickr30k.OFFICIAL_ID,
    revision: str = "main",
    *,
    cutoff: int | None = None,
    rules: check.Rules = check.DEFAULT_RULES,
) -> Path:
    """Download Flickr30k from the Hub (4.4 GB, and as much unpacked) into data_dir/flickr30k and return that folder.

    hf_dataset_id: a data set with the two files of nlphuji/flickr30k, or with parquet shards and a column `split`; of
        the known copies the Karpathy split sizes are checked.
    Downloads are kept in data_dir/flickr30k/download, and a broken one goes on where it was. Raises ValueError with
    one line and the ways on where network or copy are not right.
    """
    folder = folder_of("flickr30k", data_dir)
    if whole_manifest(folder, cutoff, None, rules.caption_case):
        return folder
    cli.require("huggingface_hub", "caption", "downloading Flickr30k")
    with alone(folder) as waited:
        if waited and whole_manifest(folder, cutoff, None, rules.caption_case):
            return folder
        return download_flickr30k(folder, hf_dataset_id, revision, cutoff, rules)


def download_flickr30k(
    folder: Path, hf_dataset_id: str, revision: str, cutoff: int | None, rules: check.Rules
) -> Path:  # fmt: skip
    """What `prepare_flickr30k` does where the set is not whole."""
    print(f"note: {flickr30k.LICENCE}")
    copy = flickr30k.find(hf_dataset_id, revision, folder / "download")
    contents = layouts.read(flickr30k.source(copy), 0)  # the copy gives every split: nothing to draw
    if hf_dataset_id in flickr30k.OFFICIAL_IDS:
        flickr30k.check_counts([record["split"] for record in contents.records])
        contents.notes.extend(flickr30k.check_train_digest(contents.records))
    fetched = {name: flickr30k.fetch(copy, name) for name in copy.files}
    make_set(folder, contents, {}, cutoff, rules, licence=flickr30k.LICENCE, revision=revision, commit=copy.commit,
             source=f"{hf_dataset_id} on the Hugging Face Hub", splits_sha256=flickr30k.splits_digest(contents.records),
             files={name: {"sha256": file.sha256, "etag": file.etag} for name, file in fetched.items()})  # fmt: skip
    if copy.folder.is_dir():
        print(f"{copy.folder} keeps the downloaded files; now that the set is whole it may be deleted")
    return folder


def prepare_demo(folder: Path, seed: int, cutoff: int | None, rules: check.Rules) -> Path:
    from nanocaption.demo_set import draw_demo_set

    begin(folder)
    counts = {split: count if cutoff is None else min(count, cutoff) for split, count in DEMO_COUNTS.items()}
    records = draw_demo_set(folder / "images", seed, counts, max(1, rules.workers))
    checked = check.check(folder, cast(list[Record], records), None, rules)
    write_set(folder, checked.records, [], checked, cutoff=cutoff, layout="demo", licence=DEMO_LICENCE,
              source="demo_set", seed=seed)  # fmt: skip
    asked = sum(len(questions_of(record)) for record in checked.records)
    print(f"Its scenes give {asked:,} questions with their answers as well: --questions trains on these")
    return folder


def prepare_folder(
    folder: Path, raw_dir: Path, seed: int, cutoff: int | None, rules: check.Rules, remake: bool = False,
    questions: bool = False,
) -> Path:  # fmt: skip
    """A folder of pictures and captions in one of the known layouts, or an archive of one -> the set at `folder`.

    remake: what was unpacked before may be of another archive, and is unpacked again. questions: instead of captions.
    """
    if remake and (folder / "unpacked").is_dir():
        shutil.rmtree(folder / "unpacked")
    contents, pictures = read_raw(raw_dir, seed, folder / "unpacked", questions)
    if remake and contents.source.unpack:
        begin(folder)
        for path in in_images(folder, contents.records).values():
            path.unlink(missing_ok=True)
    make_set(folder, contents, pictures, cutoff, rules, seed=seed if contents.drawn else None,
             licence=flickr30k.LICENCE if folder.name.startswith("flickr") else FOLDER_LICENCE,
             source=str(raw_dir.resolve()), source_sha256=source_digest(raw_dir, questions),
             **({"questions": True} if questions else {}))  # fmt: skip
    if (folder / "unpacked").is_dir():
        print(f"{folder / 'unpacked'} is no longer needed and may be deleted")
    return folder


def source_digest(raw_dir: Path, questions: bool) -> str:
    return question_sets.digest(raw_dir) if questions else layouts.captions_digest(raw_dir)


def prepare_stream(folder: Path, where: str, seed: int, cutoff: int | None, rules: check.Rules) -> Path:
    """A set at `folder` whose pictures stay in the shards that `where` names. Raises ValueError as streamed.find."""
    if (folder / "images").is_dir() and any((folder / "images").iterdir()):
        raise ValueError(f"{folder} holds pictures of a set that is not streamed: take another DATASET for this one")
    kept = folder / "stream" / "read"
    found = streamed.find(where, kept, kept)
    with on_disk.full_told(folder):
        contents = layouts.read(found.source, seed, kept)
        print(f"{where}: layout {contents.source.name}, because {contents.source.why}")
        pictures = found.locate(record["file_name"] for record in contents.records)
        make_set(folder, contents, pictures, cutoff, rules, shards=found.shards, seed=seed if contents.drawn else None,
                 scratch=kept, licence=FOLDER_LICENCE, source=where, stream={"shards": len(found.shards)})  # fmt: skip
    shutil.rmtree(kept, ignore_errors=True)
    return folder


def make_set(
    folder: Path, contents: layouts.Contents, pictures: Mapping[str, Path | Packed], cutoff: int | None,
    rules: check.Rules, *, seed: int | None = None, shards: Sequence[Shard] = (), scratch: Path | None = None,
    **about: object,
) -> None:  # fmt: skip
    """Any source that was read -> the set at `folder`: pictures and captions are checked, the good ones brought over.

    shards: in which the pictures stay.
    pictures: file_name -> where it lies; not used where the source unpacks them. seed: draws the splits, None where
    they are the source's own. scratch: where lies what memory need not hold, see on_disk.rows. about: more for the
    manifest.
    """
    records, unpack = contents.records, contents.source.unpack
    draw = None
    if seed is not None:
        records, draw = draw_first(folder, records, seed, cutoff, scratch)
    records = on_disk.rows(scratch, prepared.first_of_each(records, cutoff))
    if unpack:
        begin(folder)
        unpack([record["file_name"] for record in records], folder / "images")
        pictures = in_images(folder, records)
    elif not shards:
        look_at_space(folder, {record["file_name"]: pictures[record["file_name"]] for record in records})
    checked = check.check(folder, records, pictures, rules, draw, scratch)
    begin(folder)
    if shards:
        from nanocaption.data.shard_index import write_index  # numpy, which --help need not wait for

        kept = zip(on_disk.values_of(check_report.names_of(checked.records), pictures),
                   check_report.entries_of(checked.records, checked.found), strict=True)  # fmt: skip
        write_index(folder, shards, (path._replace(crc=entry["crc"]) for path, entry in kept
                                     if isinstance(path, Packed)), len(checked.records))  # fmt: skip
    elif not unpack:
        for record in tqdm(checked.records, desc="pictures", unit="picture"):
            bring(Path(str(pictures[record["file_name"]])), folder / "images" / record["file_name"])
    write_set(folder, checked.records, contents.notes, checked, cutoff=cutoff, layout=contents.source.name, seed=seed,
              **about)  # fmt: skip


def draw_first(
    folder: Path, records: Sequence[Record], seed: int, cutoff: int | None, scratch: Path | None
) -> tuple[Sequence[Record], check.Draw]:  # fmt: skip
    """The records with splits by names and earlier splits, and what draws again once bad ones and copies are known.

    With a cutoff, pictures that are not looked at take part as if they were sound. scratch: as on_disk.rows takes it.
    """
    names = on_disk.rows(scratch, (record["file_name"] for record in records))
    known = splits.splits_before(folder, scratch)
    if known and (kept := sum(name in known for name in names)):
        print(f"note: {kept:,} pictures keep the split that they had in {folder}; {len(names) - kept:,} are drawn")
    drawn = splits.draw(names, seed, (), known)
    pairs = zip(records, drawn, strict=True)
    first: Sequence[Record] = on_disk.rows(scratch, (record | {"split": split} for record, split in pairs))
    looked_at = set() if cutoff is None else {record["file_name"] for record in prepared.first_of_each(first, cutoff)}

    def again(good: Sequence[str], copies: list[list[str]]) -> Sequence[str]:
        others = (name for name in names if name not in looked_at) if cutoff is not None else ()
        all_of_them = on_disk.rows(scratch, itertools.chain(good, others))
        return splits.draw(all_of_them, seed, copies, known)[: len(good)]

    return first, again


def read_raw(
    raw_dir: Path, seed: int, unpacked: Path, questions: bool = False
) -> tuple[layouts.Contents, dict[str, Path]]:
    """What `raw_dir` holds, and file_name -> picture, {} where the source unpacks them.

    Archives in it are unpacked to `unpacked` only where captions or pictures are not to be found otherwise.
    """
    try:
        return read_folder(raw_dir, seed, questions)
    except ValueError as error:
        packed = archives.find(raw_dir) if isinstance(error, NotThereError) else []
        if not packed:
            if hint := hint_of_questions(raw_dir, questions):
                raise ValueError(f"{error}{hint}") from None
            raise
    needed = question_sets.is_question_file if questions else layouts.is_caption_file
    return read_folder(archives.unpack_beside(packed, raw_dir, unpacked, needed), seed, questions)


def read_folder(raw_dir: Path, seed: int, questions: bool) -> tuple[layouts.Contents, dict[str, Path]]:
    room = question_sets if questions else layouts
    contents = room.read(room.find(Path(raw_dir)), seed)
    print(f"{raw_dir}: layout {contents.source.name}, because {contents.source.why}")
    if contents.source.unpack:
        return contents, {}
    found = picture_files.find_pictures(raw_dir, [record["file_name"] for record in contents.records])
    contents.notes.extend(found.notes)
    if found.unused:
        contents.notes.append(f"{cases(found.unused, 'picture')} below {raw_dir} without captions in use, left out")
    pictures = {found.names.get(name, name): path for name, path in found.pictures.items()}
    for record in contents.records:
        record["file_name"] = found.names.get(record["file_name"], record["file_name"])
    return contents, pictures


def whole_manifest(
    folder: Path, cutoff: int | None, seed: int | None, caption_case: str = "keep",
) -> Manifest | None:  # fmt: skip
    """The manifest of a whole set, None where the set must be made; prints which it is.

    A set made with a larger cutoff serves: load_records takes its first pictures. Raises ValueError for a set drawn
    with another seed, or in lower case by an earlier version, or whose captions.json was edited: making it again would
    take from others what they rely on.
    """
    if not folder.exists():
        return None
    try:
        manifest = prepared.verify(folder)
    except prepared.EditedError:
        raise
    except ValueError as error:
        print(f"{error}; making it now")
        return None
    made_with, drawn_with = manifest.get("cutoff"), manifest.get("seed")
    made_case = manifest.get("caption_text", {}).get("case", "keep")  # only sets of an earlier version say
    of_case = ("CAPTION_CASE", made_case, caption_case if made_case == "lower" else made_case)  # lower is for good
    of_seed = ("DATA_SEED", drawn_with, drawn_with if seed is None or drawn_with is None else seed)  # None: not drawn
    for setting, then, now in (of_seed, of_case):
        if then != now:
            what = "captions*.json, all of them," if setting == "DATA_SEED" else "manifest.json"
            raise ValueError(f"{folder} was made with {setting} = {then}, now it is {now}: set it back, take another "
                             f"DATASET or DATA_DIR, or delete {folder / what} to make the set again")
    if made_with is not None and (cutoff is None or cutoff > made_with):
        print(f"{folder} holds only the first {made_with} pictures of each split; making it again with more")
        return None
    print(f"{folder} is whole: {counts_line(manifest['counts'])}")
    for note in prepared.repaired_notes(folder):
        print(note)
    return manifest


def take_stream(folder: Path, manifest: Manifest, raw_dir: Path | None, stream: str | None, compare: bool) -> None:
    """Raises ValueError where a whole set is not streamed, where it should be, or its shards are others than before.

    compare: whether RAW_DATA_DIR must name the shards that the set was made from.
    """
    if "stream" not in manifest:
        raise ValueError(f"{folder} holds its pictures unpacked: to stream the shards take another DATASET for them, "
                         "or use it as it is with STREAM = False (--no-stream)")
    if stream is None and raw_dir is not None and compare:
        raise ValueError(f"{folder} is streamed from its shards: set STREAM = True (--stream) to use it, or take "
                         "another DATASET for what is unpacked from RAW_DATA_DIR")
    check_shards(folder)
    if stream is not None and compare:
        now, then = streamed.expanded(stream), [shard["path"] for shard in read_shards(folder)]
        if others := sorted({*now} ^ {*then}):
            raise ValueError(f"{folder} was made from other shards than RAW_DATA_DIR = {stream!r} means now: "
                             f"{cases(others, 'shard')} more or less. {changes.ANEW}")


def take_whole(folder: Path, manifest: Manifest, raw_dir: Path | None, rules: check.Rules, compare: bool) -> None:
    """Raises ValueError where a whole set is no longer what `raw_dir` holds (see `changed_since`).

    Without `compare` only the set's own pictures are looked at, and what has changed is told.
    """
    if compare and raw_dir is not None and not raw_dir.exists():
        print(f"Note: RAW_DATA_DIR = {str(raw_dir)!r} is not there; the set that was made before is used: {folder}")
    problem = changed_since(folder, manifest, raw_dir if compare else None, rules)
    if problem and compare:
        raise ValueError(problem)
    if problem:
        print(f"Note: {problem}")


def changed_since(folder: Path, manifest: Manifest, raw_dir: Path | None, rules: check.Rules) -> str | None:
    """What has changed since a whole set was made, and how to go on: in its pictures, and in `raw_dir` if it is there.

    Pictures are compared by size and time of their files.
    """
    records = changes.read_records(folder)
    edited = changes.altered(in_images(folder, records), folder / "scan.jsonl")
    if raw_dir is None or not raw_dir.exists():
        return (f"{folder} was made from other files than {cases(edited, 'picture')} in its images/ are now (perhaps "
                f"hard links to what was edited): put the old ones back. {changes.ANEW}") if edited else None
    told = captions_changed(folder, manifest, raw_dir, rules)
    what = "captions" if told else "pictures"
    if not told:
        try:
            edited = sorted({*edited, *changes.replaced(folder, pictures_still_there(folder, raw_dir))})
        except ValueError as error:
            told = [str(error)]
    told += [f"{cases(edited, 'picture')} replaced by other files"] * bool(edited)
    return (f"{folder} was made from other {what} than RAW_DATA_DIR = {str(raw_dir)!r} holds now: {'; '.join(told)}. "
            f"{changes.ANEW}. To use the set as it is, set RAW_DATA_DIR to none") if told else None  # fmt: skip


def captions_changed(folder: Path, manifest: Manifest, raw_dir: Path, rules: check.Rules) -> list[str]:
    """How the captions of `raw_dir` differ from those of the set, [] where they do not; packed ones with pictures."""
    questions = manifest.get("questions", False)
    if source_digest(raw_dir, questions) == manifest.get("source_sha256"):
        return []
    if questions:
        return ["the files of questions are others"]
    drawn = manifest.get("seed") is not None
    try:
        contents = layouts.read_layout(raw_dir, manifest.get("seed") or 0)
    except ValueError as error:
        return ["the archives are others" if archives.find(raw_dir) else str(error)]
    cutoff = manifest.get("cutoff")
    comparable = manifest.get("caption_text", {}).get("version") == check.TEXT_VERSION
    records = contents.records if drawn else [*prepared.first_of_each(contents.records, cutoff)]
    found = changes.of_captions(folder, records, rules.caption_case if comparable else None, drawn,
                                all_of_it=cutoff is None or not drawn)  # fmt: skip
    return found or ["the files are others"] * (contents.source.unpack is not None or not comparable)


def pictures_still_there(folder: Path, raw_dir: Path) -> dict[str, Path]:
    """file_name -> path below `raw_dir`, of what a set holds or left out; {} of packed pictures.

    Raises as `find_pictures`.
    """
    held = {path.rpartition("/")[2] for path in walk_files(raw_dir)}
    names = [*(record["file_name"] for record in changes.read_records(folder)), *changes.left_out(folder)]
    try:
        found = picture_files.find_pictures(raw_dir, [name for name in names if name.rpartition("/")[2] in held])
        return found.pictures
    except NotThereError:  # in part: the set has its own
        return {}


def folder_of(name: str, data_dir: Path) -> Path:
    if not name or name in (".", "..") or set(name) & set('/\\:\0'):
        raise ValueError(f"DATASET = {name!r}: must be the plain name of a folder in DATA_DIR")
    return Path(data_dir) / name
