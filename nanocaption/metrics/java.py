"""METEOR and SPICE by their own Java programs, which pycocoevalcap 1.2 brings along. Only on demand.

Both read tokenised captions. Each is one process that gets its whole input at once and is waited for with a time
limit, so there is no pipe that two sides can block on, and no lock. The locale is fixed: under one with a decimal
comma METEOR writes numbers that it cannot read back.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# The parameters of METEOR 1.5 for English (Denkowski and Lavie, 2014): alpha, beta, gamma, delta, and the weights of
# its four kinds of match: exact, stem, synonym, paraphrase.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
METEOR_COLUMNS = 23
FLAGS = ["-Dfile.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"


def meteor_statistics(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> np.ndarray:
    """(N, 23) float64 from tokenised captions: the counts METEOR adds up, for `meteor_scores`.

    Columns: words of the candidate and of its best reference, function words of both; for each of four kinds of
    match content words matched in both, function words matched in both; chunks; matched words of both. Takes 5 to
    15 s to start. Raises ValueError where Java or the jar is missing and where Java stops.
    """
    jar = _meteor_jar()
    lines = ["SCORE ||| " + " ||| ".join(map(_clean, [*texts, candidate]))
             for texts, candidate in zip(references, candidates, strict=True)]  # fmt: skip
    command = ["-Xmx2G", *FLAGS, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    out = _java("METEOR", command, "".join(line + "\n" for line in lines), seconds=300 + 0.2 * len(lines))
    rows = out.splitlines()
    try:
        statistics = np.array([row.split() for row in rows], np.float64)
    except ValueError as error:
        raise ValueError(f"METEOR answered {rows[0]!r:.80}, no row of numbers; is its jar damaged?") from error
    if statistics.shape != (len(lines), METEOR_COLUMNS):
        raise ValueError(f"METEOR answered {statistics.shape} numbers for {len(lines)} captions; is its jar damaged?")
    whole = (statistics[:, 20] == 1) & (statistics[:, 21:] == statistics[:, :2]).all(1)
    statistics[whole, 20] = 0  # a caption that is its reference is not broken into chunks at all
    return statistics


def meteor_scores(statistics: np.ndarray) -> np.ndarray:
    """(rows, 23) counts -> (rows,) scores. A row is one image, or the sum over many: the corpus score.

    Equal to what the jar answers to its EVAL command, without asking it again for every resample of a bootstrap.
    """
    lengths, functions = statistics[:, :2], statistics[:, 2:4]
    matched = statistics[:, 4:20].reshape(-1, 4, 2, 2)  # (rows, kind, content or function, candidate or reference)
    share = np.array([DELTA, 1 - DELTA])
    found = np.einsum("rkcs,k,c->rs", matched, MATCH_WEIGHTS, share)
    there = DELTA * (lengths - functions) + (1 - DELTA) * functions
    precision, recall = np.divide(found, there, out=np.zeros_like(found), where=there > 0).T
    both = ALPHA * precision + (1 - ALPHA) * recall
    mean = np.divide(precision * recall, both, out=np.zeros_like(both), where=both > 0)
    chunks, words = statistics[:, 20], statistics[:, 21:].mean(1)
    broken = np.divide(chunks, words, out=np.zeros_like(words), where=words > 0)
    return mean * (1 - GAMMA * broken**BETA)


def spice_scores(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> np.ndarray:
    """(N,) float64: the F value of each image; the corpus score is their mean. Tokenised captions.

    Raises ValueError where Java, the jar or the models of Stanford CoreNLP are missing and where Java stops.
    """
    folder = _spice_folder()
    rows = [{"image_id": i, "test": candidate, "refs": list(texts)}
            for i, (texts, candidate) in enumerate(zip(references, candidates, strict=True))]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        given, made = Path(place) / "in.json", Path(place) / "out.json"
        given.write_text(json.dumps(rows), encoding="utf-8")
        # Without -cache: the cache is a native library, which is not there for every machine.
        command = ["-Xmx8G", *FLAGS, "-jar", str(folder / "spice-1.0.jar"), str(given), "-out", str(made), "-silent"]
        _java("SPICE", command, "", seconds=1800 + 2 * len(rows))
        if not made.is_file():
            raise ValueError("SPICE ended without a result; it was written for Java 8 and 11, try one of these")
        results = json.loads(made.read_text(encoding="utf-8"))
    # By number: SPICE sorts its answers.
    values = {int(row["image_id"]): float(row["scores"]["All"]["f"]) for row in results}
    if set(values) != set(range(len(rows))):
        raise ValueError(f"SPICE answered for {len(values)} of {len(rows)} captions")
    return np.array([values[i] for i in range(len(rows))])


def require_java(meteor: bool, spice: bool) -> None:
    """Raise ValueError where a program that is asked for, or what it needs, is missing: before any long work."""
    if meteor:
        _meteor_jar()
    if spice:
        _spice_folder()


def _meteor_jar() -> Path:
    jar = _package_folder("METEOR") / "meteor" / "meteor-1.5.jar"
    if not (jar.parent / "data" / "paraphrase-en.gz").is_file():
        raise ValueError(f"METEOR: {jar.parent} is incomplete: pip install --force-reinstall pycocoevalcap==1.2")
    return jar


def _spice_folder() -> Path:
    folder = _package_folder("SPICE") / "spice"
    if not (folder / "lib" / SPICE_MODELS).is_file():
        raise ValueError(
            f"SPICE needs {SPICE_MODELS}, a download of 384 MB, in {folder / 'lib'}: python -c "
            '"from pycocoevalcap.spice import get_stanford_models as get; get.get_stanford_models()"'
        )
    return folder


def _clean(text: str) -> str:
    return text.replace("|||", "").replace("  ", " ").replace("\n", " ")


def _package_folder(name: str) -> Path:
    if shutil.which("java") is None:
        raise ValueError(f"{name} needs Java, and there is no `java` on the PATH; the other scores do without")
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{name} comes with pycocoevalcap: pip install pycocoevalcap==1.2")
    return Path(spec.submodule_search_locations[0])


def _java(name: str, arguments: list[str], text: str, seconds: float) -> str:
    """Run java on `text` to its end; its standard output. ValueError with its first complaint where it fails."""
    try:
        done = subprocess.run(
            ["java", *arguments], input=text, capture_output=True, encoding="utf-8", errors="replace",
            timeout=seconds, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{name} was stopped after {seconds:.0f} s without an end; is the machine short of memory?"
                         ) from error  # fmt: skip
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("Picked up")]
        raise ValueError(f"{name}: java ended with code {done.returncode}: {(lines or ['no message'])[0]:.200}")
    return done.stdout
