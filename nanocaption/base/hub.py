"""An exported folder and the Hugging Face Hub: download one, upload one, ask whether an upload may be made.

huggingface_hub respects HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE. It waits for answers without any limit, and
threads of its own cannot be ended, so uploads beside a training are a process each: that one can be killed.
"""

from collections.abc import Sequence
from pathlib import Path

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
# What an exported folder consists of, in the order of writing. Nothing else of it is uploaded: scores of an evaluation
# may lie beside, with pictures that are not ours to publish.
FILES = (
    WEIGHTS, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json", "README.md",
    CONFIG,
)  # fmt: skip
SAMPLES = "samples.jpg"  # beside them where the card shows pictures
CHECK_SECONDS = 5.0


def is_id(name: str) -> bool:
    """Whether a name can be that of a model on the Hub, and is nothing on this machine."""
    elsewhere = name.startswith((".", "/", "~")) or name.endswith(".safetensors") or "\\" in name or "," in name
    return name.count("/") == 1 and not elsewhere and not Path(name).exists()


def download(name: str, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """The folder, in the Hub's cache, with these files of the model `name` (user/name) at a branch, tag or commit.

    What is cached already is not loaded again, and serves without network. Raises ValueError with one line.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except errors() as error:
        raise ValueError(_download_problem(error, name, revision)) from error


def push(folder: Path, repo_id: str, private: bool, message: str, files: Sequence[str] = FILES) -> str:
    """Commit `files`, those of an exported folder, and SAMPLES where it is, to the model repository `repo_id`.

    Returns its URL. private: how the repository is made where there is none yet; one that is there stays as visible as
    it is. Raises ValueError with one line.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, allow_patterns=[*files, SAMPLES])
    except errors() + (RuntimeError,) as error:
        raise ValueError(f"{repo_id} could not be uploaded to {api.endpoint}: {reason_of(error)}") from error
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
    except errors() + (KeyError, TypeError) as error:
        return f"{constants.ENDPOINT} does not say whose token this is ({reason_of(error)})"
    owner = repo_id.partition("/")[0]
    return None if owner in names else f"the token belongs to {' and '.join(names)}, not to {owner!r}"


def errors() -> tuple[type[Exception], ...]:
    """All that versions 1 and 2 of the Hub's client raise for a wrong id, a refusal or a failing network."""
    from huggingface_hub.utils import httpx

    return OSError, ValueError, httpx.HTTPError


def reason_of(error: BaseException) -> str:
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
    return f"{name}{at} could not be loaded from {constants.ENDPOINT}: {reason_of(error)}"
