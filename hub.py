"""An exported folder and the Hugging Face Hub: download one, upload one, and upload beside a training.

    python hub.py FOLDER USER/NAME [--public] [--message TEXT]       what an upload beside a training runs

huggingface_hub respects HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE. It waits for answers without any limit, and
threads of its own cannot be ended, so uploads beside a training are a process each: that one can be killed.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
# What an exported folder consists of, in the order of writing. Nothing else of it is uploaded: scores of an evaluation
# may lie beside, with pictures that are not ours to publish.
FILES = (
    WEIGHTS, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json", "README.md",
    CONFIG,
)  # fmt: skip
CHECK_SECONDS = 5.0
WAIT_SECONDS = 300.0  # at the end of a training, for the upload of its best checkpoint


def download(name: str, revision: str | None = None) -> Path:
    """The folder, in the Hub's cache, of the exported model `name` (user/name) at a branch, tag or commit.

    What is cached already is not loaded again, and serves without network. Raises ValueError with one line.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except errors() as error:
        raise ValueError(_download_problem(error, name, revision)) from error


def push(folder: Path, repo_id: str, private: bool, message: str) -> str:
    """Commit the files of an exported folder to the model repository `repo_id`; returns its URL.

    private: how the repository is made where there is none yet; one that is there stays as visible as it is.
    Raises ValueError with one line.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, allow_patterns=list(FILES))
    except (*errors(), RuntimeError) as error:
        raise ValueError(f"{repo_id} could not be uploaded to {api.endpoint}: {_reason(error)}") from error
    return str(url)


def access_problem(repo_id: str) -> str | None:
    """Why an upload to `repo_id` would be refused, as far as one request of CHECK_SECONDS can tell, or None."""
    import huggingface_hub
    from huggingface_hub import constants, utils

    token = huggingface_hub.get_token()
    if not token:
        return "there is no token: set HF_TOKEN, or log in with `hf auth login`"
    try:
        answer = utils.get_session().get(
            f"{constants.ENDPOINT}/api/whoami-v2", headers=utils.build_hf_headers(token=token), timeout=CHECK_SECONDS
        )
        utils.hf_raise_for_status(answer)
        person = answer.json()
        names = [person["name"], *(group["name"] for group in person.get("orgs", ()))]
    except (*errors(), KeyError, TypeError) as error:
        return f"{constants.ENDPOINT} does not say whose token this is ({_reason(error)})"
    owner = repo_id.partition("/")[0]
    return None if owner in names else f"the token belongs to {' and '.join(names)}, not to {owner!r}"


class Uploads:
    """Uploads to one repository beside a training, one at a time; a newer one ends the one before.

    by_hand: the command that repeats an upload, told where one failed. tell: prints a line.
    """

    def __init__(self, repo_id: str, private: bool, tell: Callable[[str], None]):
        self.repo_id = repo_id
        self.private = private
        self.tell = tell
        self._process: subprocess.Popen | None = None
        self._message = self._by_hand = ""

    def start(self, folder: Path, message: str, by_hand: str) -> None:
        """Begin to upload `folder`, which must stay as it is until the next `end` or `finish`."""
        self.end()
        visible = [] if self.private else ["--public"]
        self._message, self._by_hand = message, by_hand
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder), self.repo_id, "--message", message, *visible,
             "--with-process", str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,  # a Ctrl-C is for the training, which then ends it
        )  # fmt: skip

    def end(self) -> None:
        """Nothing is being uploaded afterwards: what is under way is dropped, the outcome of the last one is told."""
        self._settle("dropped for a newer one")

    def finish(self, seconds: float) -> None:
        """Wait for the upload under way, `seconds` at most (Ctrl-C waits no longer), and say what became of it."""
        if self._process is not None and seconds and self._process.poll() is None:
            self.tell(f"Hub: uploading {self._message} to {self.repo_id}; waiting {seconds:.0f} s at most")
        problem = f"not done within {seconds:.0f} s" if seconds else "the run ended before it"
        try:
            if self._process is not None:
                self._process.communicate(timeout=seconds)  # reads on: a full pipe would stop the process
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:
            problem = "not waited for"
        finally:
            self._settle(problem)

    def _settle(self, unfinished: str) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        running = process.poll() is None
        if running:
            process.kill()  # a commit is whole or not there
        output, errors = process.communicate()
        if process.returncode == 0:
            self.tell(f"Hub: {output.strip()} holds {self._message}")
            return
        said = (errors.strip() or f"exit status {process.returncode}").splitlines()[-1]
        reason = unfinished if running else said
        repeat = "" if running and unfinished.startswith("dropped") else f". By hand: {self._by_hand}"
        self.tell(f"Hub: {self._message} is not uploaded: {reason}{repeat}")


def errors() -> tuple[type[Exception], ...]:
    """All that versions 1 and 2 of the Hub's client raise for a wrong id, a refusal or a failing network."""
    from huggingface_hub.utils import httpx

    return OSError, ValueError, httpx.HTTPError


def _reason(error: BaseException) -> str:
    """The first line of an error and of what caused it, where that says more."""
    lines = [(str(one).strip() or type(one).__name__).splitlines()[0] for one in (error, error.__cause__) if one]
    return ": ".join(dict.fromkeys(lines) if isinstance(error, RuntimeError) else lines[:1])


def _download_problem(error: Exception, name: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    at = f" at revision {revision!r}" if revision else ""
    if isinstance(error, errors.GatedRepoError):
        return f"{name} asks for an agreement on the Hub first: accept it there and set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{name!r} is no folder here, and {constants.ENDPOINT} has no such model, or hides it (set HF_TOKEN)."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r} on {constants.ENDPOINT}: give a branch, a tag or a commit."
    if isinstance(error, errors.HFValidationError):
        return f"{name!r} is no folder here and no id of the Hub (user/name)."
    if constants.HF_HUB_OFFLINE:
        return f"{name!r} is no folder here, HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} does not hold it{at}."
    return f"{name}{at} could not be loaded from {constants.ENDPOINT}: {_reason(error)}"


def _end_with(parent: int) -> None:
    """A training that is killed cannot end its upload, which would wait for a silent Hub for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="hub.py", description="Upload an exported folder to the Hugging Face Hub.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("repo_id", metavar="USER/NAME")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--message", default="Upload a nanoCaption model", help="of the commit")
    parser.add_argument("--with-process", type=int, metavar="PID", help="end when this, the parent process, has ended")
    arguments = parser.parse_args(argv)
    if arguments.with_process is not None:
        threading.Thread(target=_end_with, args=(arguments.with_process,), daemon=True).start()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if problem := access_problem(arguments.repo_id):  # known within seconds, where the client itself would wait on
        raise SystemExit(f"{arguments.repo_id} cannot be uploaded: {problem}")
    print(push(arguments.folder, arguments.repo_id, not arguments.public, arguments.message))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:  # the last line out of the pipe is what is told
        raise SystemExit(_reason(error)) from None
