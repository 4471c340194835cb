"""Upload an exported folder to the Hugging Face Hub. An upload beside a training runs this as a process of its own.

    nanocaption upload my_captioner user/name                 private, unless the repository is there and public
    nanocaption upload my_captioner user/name --public --message "epoch 12"
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from nanocaption.base import hub
from nanocaption.model import onnx_folder


def main(argv: list[str]) -> None:
    """Upload what argv names, and print the repository's address. ValueError or SystemExit with one line."""
    parser = argparse.ArgumentParser(
        prog="nanocaption upload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("repo_id", metavar="USER/NAME")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--message", default="Upload a nanoCaption model", help="of the commit")
    parser.add_argument("--with-process", type=int, metavar="PID", help="end when this, the parent process, has ended")
    arguments = parser.parse_args(argv)
    if arguments.with_process is not None:
        threading.Thread(target=_end_with, args=(arguments.with_process,), daemon=True).start()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if problem := hub.access_problem(arguments.repo_id):  # known within seconds, where the client itself would wait on
        raise SystemExit(f"{arguments.repo_id} cannot be uploaded: {problem}")
    files = files_of(arguments.folder)
    print(hub.push(arguments.folder, arguments.repo_id, not arguments.public, arguments.message, files))


def files_of(folder: Path) -> Sequence[str]:
    """What is uploaded of a folder, by the format it is in. SystemExit where it is no export."""
    if onnx_folder.is_onnx_export(folder):
        return onnx_folder.files_in(folder)
    try:
        about = json.loads((folder / hub.CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        about = {}
    if isinstance(about, dict) and about.get("model_type") == "nanocaption":
        return hub.FILES
    from nanocaption.export import transformers_folder  # imports torch, which a training beside it feels

    if transformers_folder.is_transformers_export(folder):
        return transformers_folder.FILES
    raise SystemExit(f"{folder} is no exported folder: `nanocaption export CHECKPOINT {folder}` writes one")


def _end_with(parent: int) -> None:
    """A training that is killed cannot end its upload, which would wait for a silent Hub for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
