"""The train and val sets as a run sees them: captions as ids, pictures or a frozen encoder's features from caches."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from nanocaption.base import devices
from nanocaption.base.settings import Settings
from nanocaption.data.caches import Rows, Source, cached_rows, key_of, note_user
from nanocaption.data.dataset import Batch, ImageTextDataset, Views
from nanocaption.data.loader import make_loader
from nanocaption.data.order import chunks
from nanocaption.data.packing import padded
from nanocaption.data.prepared import Record
from nanocaption.data.question_tokens import LEAST_ROOM, Encoded, encode_questions
from nanocaption.data.questions import asking
from nanocaption.data.shards import is_streamed
from nanocaption.data.stream import StreamedDataset, TrainingRecords, encode
from nanocaption.data.tokenizer import ENCODING, PAD, cut_lengths, encode_batch, tokenizer_digest
from nanocaption.data.transform import Augment, ImageSpec

READ_AT_ONCE = 32  # pictures; divides caches.CHUNK
KEPT_FROM = 20_000  # captions of a split; fewer are encoded in a second
ENCODED_AT_ONCE = 8192  # captions
MANY_CUT = 0.01  # of a split's captions


class Captioner(Protocol):
    """What of a model features depend on: model.captioner.ImageToTextModel."""

    encoder: nn.Module
    image_spec: ImageSpec

    def eval(self) -> object: ...
    def encode(self, images: torch.Tensor) -> torch.Tensor: ...
    def encoder_identity(self) -> object: ...


def make_inputs(
    settings: Settings,
    folder: Path,
    records: Mapping[str, Sequence[Record] | TrainingRecords],
    tokenizer: Tokenizer,
    model: Captioner,
    device: torch.device,
    encoding: int = ENCODING,
    user: Path | None = None,
) -> dict[str, ImageTextDataset]:
    """A data set per split of `records`, made from the prepared data in `folder`. user: the folder of the run.

    A frozen encoder's features are cached (CACHE_FEATURES); the decoded pictures (CACHE_IMAGES) where these are what is
    needed: the encoder trains, or RANDOM_CROP_AREA or RANDOM_FLIP change them anew every epoch; with FEATURE_VIEWS
    the features of so many changed views of each training picture. On a GPU with room features stay there.
    Of a streamed set nothing is cached but the captions' ids. encoding: of the run, tokenizer.ENCODING.
    """
    sets = {}
    streamed = is_streamed(folder)
    if streamed and (settings.CACHE_IMAGES or (settings.CACHE_FEATURES and settings.FREEZE_ENCODER)):
        devices.console("streamed: each picture is read from its shard every epoch; CACHE_IMAGES, CACHE_FEATURES and "
                        "FEATURE_VIEWS, which would copy the set, are left aside")  # fmt: skip
    for split, rows in records.items():
        if isinstance(rows, TrainingRecords):
            sets[split] = streamed_set(settings, split, rows, tokenizer, model.image_spec, encoding, user)
            continue
        if settings.QUESTIONS:
            token_ids, rows = encoded_questions(settings, split, rows, tokenizer)
        else:
            captions = [caption for row in rows for caption in row["captions"]]
            ids = iter(encoded_captions(settings, folder, split, captions, tokenizer, encoding, user))
            token_ids = [[next(ids) for _ in row["captions"]] for row in rows]
        images = ImageTextDataset(rows, folder / "images", token_ids, model.image_spec)
        images.augment = augmentation(settings) if split == "train" else None
        keep_sides(images, encoding)
        if not streamed:
            take_from_caches(settings, folder, split, images, model, device, user)
        sets[split] = images
    return sets


def take_from_caches(
    settings: Settings, folder: Path, split: str, images: ImageTextDataset, model: Captioner, device: torch.device,
    user: Path | None = None,
) -> None:  # fmt: skip
    """Give `images` the features or the decoded pictures that are kept, made now where they are not there."""
    features = settings.FREEZE_ENCODER and settings.CACHE_FEATURES
    if features and images.augment is not None and not settings.FEATURE_VIEWS:
        devices.console("The training pictures change at random: the frozen encoder runs on them every epoch.")
    elif features:
        images.cached = cached_features(settings, folder, split, images, model, device, user)
        keep_on_device(images, device)
    if images.cached is None and settings.CACHE_IMAGES:
        images.cached = cached_pictures(settings, folder, split, images, user)


def augmentation(settings: Settings) -> Augment | None:
    """How training pictures are changed at random; None: not at all."""
    if settings.RANDOM_CROP_AREA < 1 or settings.RANDOM_FLIP:
        return Augment(settings.RANDOM_CROP_AREA, settings.RANDOM_FLIP, settings.SEED)
    return None


def keep_sides(images: ImageTextDataset, encoding: int) -> None:
    """Tell how many pictures are never mirrored; in a run of before none is spared, and shares are rounded up."""
    images.rounded_up = encoding < 4
    if encoding < 3:
        images.one_sided = [False] * len(images)
    if images.augment is not None and images.augment.flip and (count := sum(images.one_sided)):
        devices.console(f"RANDOM_FLIP: {count:,} of {len(images):,} training pictures stay as they are, as their "
                        "captions name left or right")  # fmt: skip


def streamed_set(
    settings: Settings, split: str, records: TrainingRecords, tokenizer: Tokenizer, image_spec: ImageSpec,
    encoding: int, user: Path | None = None,
) -> StreamedDataset:  # fmt: skip
    """The training pictures of a streamed set. Tells how many captions MAX_SEQ_LEN cuts, and what is left out."""
    place = cache_place(settings, records.folder) / "cache"
    found = devices.first_rank_first(lambda: encode(records, tokenizer, settings.MAX_SEQ_LEN, encoding, place))
    note_user(found.folder, user)
    if found.repeats:
        devices.console(f"captions, {split}: {found.repeats:,} of {found.captions + found.repeats:,} say the same as "
                        "another one of their picture and are left out of training")  # fmt: skip
    for line in cut_notes(split, found.cut, found.captions, settings.MAX_SEQ_LEN):
        devices.console(line)
    images = StreamedDataset(records.folder, found, image_spec, augmentation(settings))
    keep_sides(images, encoding)
    return images


def cut_notes(split: str, cut: Sequence[int], captions: int, longest: int) -> list[str]:
    """What to tell of captions that are cut to `longest`, MAX_SEQ_LEN. cut: how many ids each of them would have."""
    if not cut:
        return []
    need = max(cut)
    share = len(cut) / captions
    lines = [f"captions, {split}: {len(cut):,} of {captions:,} ({share:.2%}) are cut to MAX_SEQ_LEN = {longest} tokens "
             f"and teach no end; the longest has {need:,}: MAX_SEQ_LEN = {need} would hold all"]  # fmt: skip
    if share > MANY_CUT:
        most = sorted(cut)[-1 - int(MANY_CUT * captions)]
        lines.append(f"WARNING: {share:.1%} of the captions of {split} are cut; the model cannot write longer ones. "
                     f"Set MAX_SEQ_LEN = {most} to hold 99 %, or a larger VOCAB_SIZE for fewer tokens a caption.")
    return lines


def encoded_captions(
    settings: Settings, folder: Path, split: str, captions: list[str], tokenizer: Tokenizer,
    encoding: int = ENCODING, user: Path | None = None,
) -> Sequence[Sequence[int]]:  # fmt: skip
    """The ids of every caption; those of KEPT_FROM captions or more are kept, encoding them takes 70 us each.

    Tells how many MAX_SEQ_LEN cuts.
    """
    length = settings.MAX_SEQ_LEN
    rows = _kept_or_encoded(settings, folder, split, captions, tokenizer, encoding, user)
    for line in cut_notes(split, cut_lengths(tokenizer, captions, rows, length), len(captions), length):
        devices.console(line)
    return rows


def encoded_questions(
    settings: Settings, split: str, records: Sequence[Record], tokenizer: Tokenizer
) -> tuple[list[list[np.ndarray]], list[Record]]:
    """(of every picture the ids of its questions with their answers; the records, their texts as their captions).

    Tells how many questions MAX_SEQ_LEN leaves no room for an answer, and how many answers it cuts. A picture keeps its
    place, though all of its questions may be too long. ValueError where those of all pictures are.
    """
    longest = settings.MAX_SEQ_LEN
    askings = [[asking(question, settings.CAPTION_CASE) for question in record["questions"]] for record in records]
    flat = [(record["file_name"], one) for record, own in zip(records, askings, strict=True) for one in own]
    found = encode_questions(tokenizer, [one for _, one in flat], longest)
    if len(found.too_long) == len(flat):
        raise ValueError(f"All {len(flat):,} questions of {split} are too long for MAX_SEQ_LEN = {longest}: at least "
                         f"{min(need for _, need in found.too_long) + LEAST_ROOM} is needed for one of them")
    for line in question_notes(split, found, [f"{name}: {one.question[:60]!r}" for name, one in flat], longest):
        devices.console(line)
    rows = iter(found.rows)
    token_ids = [[ids for _ in own if (ids := next(rows)) is not None] for own in askings]
    return token_ids, [record | {"captions": [text for one in own for text in one.texts()]}
                       for record, own in zip(records, askings, strict=True)]  # fmt: skip


def question_notes(split: str, found: Encoded, shown: Sequence[str], longest: int) -> list[str]:
    """What to tell of questions that do not fit in `longest` tokens, MAX_SEQ_LEN. shown: each as people know it."""
    lines, total = [], len(found.rows)
    if found.too_long:
        first, need = found.too_long[0][0], max(need for _, need in found.too_long) + LEAST_ROOM
        lines.append(f"questions, {split}: {len(found.too_long):,} of {total:,} leave no room for an answer in "
                     f"MAX_SEQ_LEN = {longest} tokens and are left out, the first is {shown[first]}; MAX_SEQ_LEN = "
                     f"{need} would hold all")  # fmt: skip
    if found.shortened:
        lines.append(f"questions, {split}: of {found.shortened:,} of {total:,} the oldest turns are left out, to hold "
                     f"the question in MAX_SEQ_LEN = {longest} tokens")  # fmt: skip
    if found.cut:
        lines.append(f"answers, {split}: {len(found.cut):,} of {total:,} ({len(found.cut) / total:.2%}) are cut to "
                     f"MAX_SEQ_LEN = {longest} tokens and teach no end; MAX_SEQ_LEN = {max(found.cut)} would hold all")
    return lines


def _kept_or_encoded(
    settings: Settings, folder: Path, split: str, captions: list[str], tokenizer: Tokenizer,
    encoding: int, user: Path | None,
) -> Sequence[Sequence[int]]:  # fmt: skip
    length = settings.MAX_SEQ_LEN

    def make(places: list[int]) -> Iterator[np.ndarray]:
        for some in chunks(places, ENCODED_AT_ONCE):
            ids = encode_batch(tokenizer, [captions[place] for place in some], length, encoding)
            yield padded(ids, PAD, length).astype(np.int32)

    found = None
    if len(captions) >= KEPT_FROM:
        key = key_of((), folder, ["tokens", encoding, tokenizer_digest(tokenizer), length, captions])
        source = Source(len(captions), make, f"captions, {split}", "caption", ENCODED_AT_ONCE)
        found = _kept(settings, folder, f"tokens_{split}", key, source, user)
    if found is None:
        return encode_batch(tokenizer, captions, length, encoding)
    rows = np.concatenate(found.chunks)  # (captions, MAX_SEQ_LEN); in memory, as memory-mapped ones are slow to cut up
    lengths = (rows != PAD).sum(1)  # no caption's text gives <pad>
    return [row[:number] for row, number in zip(rows, lengths.tolist(), strict=True)]


def cached_features(
    settings: Settings,
    folder: Path,
    split: str,
    images: ImageTextDataset,
    model: Captioner,
    device: torch.device,
    user: Path | None = None,
) -> Rows | None:
    """The frozen encoder's output for every picture, float16 (P, E) each; None where CACHE_LIMIT_GB forbids it.

    Where the pictures change and FEATURE_VIEWS asks for several views, those of all first views, then of all second
    ones, and so on.
    """
    dtype = devices.pick_dtype(settings.PRECISION, device)
    model.eval()
    about: list[object] = ["features", str(dtype), images.image_spec, model.encoder_identity()]
    views = settings.FEATURE_VIEWS if images.augment is not None else 1
    if views > 1:
        about.append(["views", views, images.augment, images.one_sided])

    def make(places: list[int]) -> Iterator[np.ndarray]:
        groups = [(place % len(images), (), place // len(images)) for place in places]
        pictures = images if views == 1 else Views(images)
        for batch in make_loader(pictures, chunks(groups, READ_AT_ONCE), settings.NUM_WORKERS):
            with torch.no_grad(), devices.autocast(device, dtype):
                found = model.encode(batch.images.to(device)).to(torch.float16).cpu()  # (n, P, E)
            if not found.isfinite().all():
                raise ValueError("The encoder's features do not fit into float16: set CACHE_FEATURES = False.")
            yield found.numpy()

    weights = {name: _bytes(tensor) for name, tensor in model.encoder.state_dict().items()}
    key = key_of(images.paths, images.images_dir, about, weights)
    source = Source(views * len(images), make, f"encoder features, {split}", "view" if views > 1 else "image")
    found = _kept(settings, folder, f"features_{split}", key, source, user)
    if found is not None:
        images.views = views
    elif views > 1:
        devices.console("The training pictures change at random: the frozen encoder runs on them every epoch.")
    return found


def cached_pictures(
    settings: Settings, folder: Path, split: str, images: ImageTextDataset, user: Path | None = None
) -> Rows | None:
    """Every picture as the encoder wants it, uint8 (3, S, S); None where CACHE_LIMIT_GB forbids it."""

    def make(places: list[int]) -> Iterator[np.ndarray]:
        return (batch.images.numpy() for batch in _read(images, places, settings.NUM_WORKERS))

    key = key_of(images.paths, images.images_dir, ["pictures", images.image_spec])
    return _kept(settings, folder, f"pictures_{split}", key, Source(len(images), make, f"pictures, {split}"), user)


def keep_on_device(images: ImageTextDataset, device: torch.device) -> None:
    """Move cached features to a GPU, where they take at most half of what is free there."""
    if device.type != "cuda" or not isinstance(images.cached, Rows):
        return
    size = sum(chunk.nbytes for chunk in images.cached.chunks)
    torch.cuda.empty_cache()  # what making them took counts as taken otherwise, and the next start would decide anew
    free, _ = torch.cuda.mem_get_info(device)
    if size <= free // 2:
        resident = torch.empty((len(images.cached), *images.cached[0].shape), dtype=torch.float16, device=device)
        start = 0
        for chunk in images.cached.chunks:
            resident[start : start + len(chunk)] = torch.from_numpy(np.array(chunk))
            start += len(chunk)
        images.keep_on(resident)
        devices.console(f"{size / 1e9:.2f} GB of features stay in the memory of {device}")


def cache_place(settings: Settings, folder: Path) -> Path:
    """Where cache/ and tokenizer/ of the prepared set in `folder` lie: beside it, or where CACHE_DIR says."""
    return folder if settings.CACHE_DIR is None else Path(settings.CACHE_DIR) / folder.name


def _kept(
    settings: Settings, folder: Path, name: str, key: str, source: Source, user: Path | None
) -> Rows | None:
    """The rows of this cache of the prepared data in `folder`; of several processes the first one makes them."""
    limit, place = int(settings.CACHE_LIMIT_GB * 1e9), cache_place(settings, folder) / "cache" / f"{name}_{key[:16]}"
    return devices.first_rank_first(lambda: cached_rows(place, source, limit, user))


def _read(images: ImageTextDataset, places: list[int], workers: int) -> Iterator[Batch]:
    yield from make_loader(images, chunks([(place, ()) for place in places], READ_AT_ONCE), workers)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
