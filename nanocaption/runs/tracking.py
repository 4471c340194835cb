"""Copies of a run's log for other eyes: Weights & Biases (LOG_WANDB) and TensorBoard (LOG_TENSORBOARD).

log.jsonl is the truth, and neither copy delays or stops a run: each has to start within seconds, what one of them
refuses is told once (log.write_row), and at the end W&B is waited for FINISH_SECONDS at most.
"""

import contextlib
import functools
import html
import http.client
import os
import secrets
import shlex
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nanocaption.base import devices
from nanocaption.base.settings import Settings
from nanocaption.base.shown import as_markdown, shown
from nanocaption.base.tensors import State
from nanocaption.data.pictures import data_uri, thumbnail
from nanocaption.runs.log import Copy, Row

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

ANSWER_SECONDS = 3  # for W&B's server to give any answer
START_SECONDS = 5  # then for the run's registration there
FINISH_SECONDS = 10  # at the end, for what is not uploaded yet


@contextlib.contextmanager
def copies(
    wandb_run: "wandb.Run | None", tensorboard: "SummaryWriter | None", pictures: dict[str, Path]
) -> Iterator[list[Copy]]:
    """What log.write_row is to hand each row to, as long as it lasts; either may be None.

    pictures: file name -> file, of the samples that rows of the type "samples" name.
    """
    found: list[Copy] = []
    with contextlib.ExitStack() as ends:
        if wandb_run is not None:
            found.append(functools.partial(to_wandb, wandb_run, pictures))
            ends.push(lambda kind, *_: _end("W&B", lambda: wandb_run.finish(exit_code=int(kind is not None))))
        if tensorboard is not None:
            found.append(functools.partial(to_tensorboard, tensorboard, pictures))
            ends.callback(_end, "TensorBoard", tensorboard.close)
        yield found


def numbers(row: Row) -> dict[str, float]:
    """What of a row is a number, by names as "train/loss"; its step is the axis."""
    found = {f"{row['type']}/{k}": v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
    return found if row["type"] != "samples" else {}


def setup_wandb(settings: Settings, folder: Path, about: State, resumed: bool) -> "wandb.Run | None":
    """The W&B run that LOG_WANDB asks for, continued on a resume; None, said in one line, where it cannot be had.

    about: what every checkpoint says of the run; its "wandb_run_id" is set here, also where W&B could not be reached,
        so that the next start tries the same run again.
    Its files lie in `folder`/wandb, or where WANDB_DIR says. WANDB_MODE=offline needs no login and no network.
    Returns within seconds: a server that does not answer is not waited for.
    """
    if not settings.LOG_WANDB or devices.rank() != 0:
        return None
    about["wandb_run_id"] = about["wandb_run_id"] or secrets.token_hex(4)
    try:
        import wandb

        own = wandb.setup(wandb.Settings(silent=True)).settings
        if own.mode == "disabled":
            devices.console("W&B is switched off by WANDB_MODE; the run goes on with log.jsonl alone.")
            return None
        online = own.mode not in ("offline", "dryrun")
        if online and not _answers(own.base_url):
            raise ValueError(f"{own.base_url} does not answer; WANDB_MODE=offline keeps its files for later")
        if online and not wandb.login(prompt=False):
            raise ValueError("there is no login: run `wandb login`, or set WANDB_MODE=offline")
        run = wandb.init(
            project=settings.WANDB_PROJECT, entity=settings.WANDB_ENTITY, name=folder.name, config=about["config"],
            id=about["wandb_run_id"], resume="allow", dir=os.environ.get("WANDB_DIR", str(folder)),
            settings=wandb.Settings(init_timeout=START_SECONDS, finish_timeout=FINISH_SECONDS, silent=True),
        )  # fmt: skip
        # An axis of its own: after a resume from an earlier checkpoint W&B would drop steps below its last one.
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")
        run.define_metric("val/val_loss", step_metric="global_step", summary="min")
        run.define_metric("val/CIDEr", step_metric="global_step", summary="max")
    except Exception as error:  # wandb raises its own errors, the network's and the operating system's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        devices.console(f"W&B could not be started ({reason}); the run goes on with log.jsonl alone.")
        return None
    if online:
        devices.console(f"W&B: {run.url}")
        return run
    place = Path(run.dir).parent
    devices.console(f"W&B, offline: {place}; later: wandb sync {shlex.quote(str(place))}")
    if resumed:
        devices.console(f"Note: each start has such a folder, all of run {run.id}: sync them all, the oldest first.")
    return run


def to_wandb(run: "wandb.Run", pictures: dict[str, Path], row: Row) -> None:
    """Log a row: its numbers, and sample pictures with their captions as a table.

    The table is a page of HTML, pictures inside: those of a wandb.Table would lie outside the run's folder, offline.
    """
    content: Row = dict(numbers(row))
    if row["type"] == "samples":
        import wandb

        content["samples"] = wandb.Html(samples_table(row["samples"], pictures), data_is_not_path=True)
    run.log({**content, "global_step": row.get("step", 0)})


def samples_table(samples: list[dict[str, str]], pictures: dict[str, Path]) -> str:
    """An HTML table of sample captions, small pictures inside."""
    lines = []
    for sample in samples:
        uri = data_uri(thumbnail(pictures[sample["file_name"]]))
        name, caption = (html.escape(shown(sample[key])) for key in ("file_name", "caption"))
        lines.append(f'<tr><td><img src="{uri}" alt=""></td><td>{name}</td><td>{caption}</td></tr>')
    return f"<table><tr><th>picture</th><th>file</th><th>caption</th></tr>\n{chr(10).join(lines)}\n</table>"


def _answers(url: str) -> bool:
    """Whether W&B's interface at that address gives any answer within ANSWER_SECONDS, a refusal as well.

    Asked for nothing much, but at the very place that wandb needs: it would wait longer, and again at the exit.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            question = urllib.request.Request(
                url.rstrip("/") + "/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(question, timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError as error:
            error.close()  # an answer all the same
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):  # wandb may know other certificates
                return
        answered.set()

    # A thread, because looking up a host's name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answered.is_set()


def start_tensorboard(settings: Settings, folder: Path, step: int) -> "SummaryWriter | None":
    """The writer into `folder`/tensorboard that LOG_TENSORBOARD asks for, which hides what lies beyond `step`.

    None, said in one line, where it cannot be had.
    """
    if not settings.LOG_TENSORBOARD or devices.rank() != 0:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1, flush_secs=30)
    except ImportError:
        devices.console("LOG_TENSORBOARD needs: pip install tensorboard. The run goes on with log.jsonl alone.")
        return None
    except OSError as error:
        devices.console(f"TensorBoard's files cannot be written ({error}); the run goes on with log.jsonl alone.")
        return None
    devices.console(f"TensorBoard: tensorboard --logdir {shlex.quote(str(folder / 'tensorboard'))}")
    return writer


def to_tensorboard(writer: "SummaryWriter", pictures: dict[str, Path], row: Row) -> None:
    """Add a row: its numbers as scalars, sample pictures as images and their captions as a text."""
    step = row.get("step", 0)
    for name, value in numbers(row).items():
        writer.add_scalar(name, value, step)
    if row["type"] == "samples":
        import numpy as np

        for sample in row["samples"]:
            picture = np.asarray(thumbnail(pictures[sample["file_name"]]))  # (H, W, 3)
            writer.add_image(f"samples/{sample['file_name']}", picture, step, dataformats="HWC")
        table = "".join(f"| {as_markdown(s['file_name'])} | {as_markdown(s['caption'])} |\n" for s in row["samples"])
        writer.add_text("samples", "| picture | caption |\n|---|---|\n" + table, step)
    if row["type"] != "train":
        writer.flush()


def _end(name: str, end: Callable[[], None]) -> None:
    """End a copy; trouble with it is only told."""
    try:
        end()
    except Exception as error:  # whatever its network layer or the disk raises
        devices.console(f"{name} did not end well ({error}); log.jsonl is whole.")
