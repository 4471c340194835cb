"""A run of many short epochs, watched from outside: memory, handles, threads and files must not grow with its length.

    python benchmarks/long_run.py --epochs 1000 --folder /tmp/long

The miniature of the demo set is trained by a process of its own; every few seconds its resident memory, open handles
and threads and the files of its folder are read, each with the epoch that it has reached. Printed as a table, and at
the end as JSON. `--flags` takes further flags of train.py.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = """--data-cutoff 24 --vit-layers 1 --vit-embed-dim 32 --vit-heads 2 --image-size 32 --decoder-layers 1
    --decoder-embed-dim 32 --decoder-heads 2 --decoder-ff-dim 64 --vocab-size 320 --batch-size 20 --warmup-steps 2
    --validation-score-images 4 --learning-rate 3e-4 --max-seq-len 24 --run-name long"""


def watched(pid: int) -> dict[str, int]:
    """Of a process: resident memory in kB, that of no file (the heap), open handles, threads."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return {
        "rss_kb": int(status["VmRSS"][0]), "heap_kb": int(status["RssAnon"][0]), "threads": int(status["Threads"][0]),
        "handles": len(os.listdir(f"/proc/{pid}/fd")),
    }  # fmt: skip


def epochs_done(log: Path) -> int:
    """By the last whole rows of the log."""
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        rows = file.read().split(b"\n")[1:-1]
    return max((int(json.loads(row).get("epoch", 0)) for row in rows), default=0)


def watch(flags: list[str], folder: Path, seconds: float) -> list[dict[str, int]]:
    """Train in a process of its own until it ends; what it took, every `seconds`."""
    command = [sys.executable, str(ROOT / "train.py"), "--output-dir", str(folder / "runs"), "--data-dir",
               str(folder / "data"), *shlex.split(TINY), *flags]  # fmt: skip
    run, found = folder / "runs" / "long", []
    with (folder / "printed.txt").open("w") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=printed)
        while process.poll() is None:
            time.sleep(seconds)
            try:
                now = watched(process.pid)
            except (OSError, KeyError):
                break  # it has just ended
            if epoch := epochs_done(run / "log.jsonl"):
                files = sum(1 for path in folder.rglob("*") if path.is_file())
                found.append({"epoch": epoch, **now, "files": files})
                print(" ".join(f"{name} {value:>7}" for name, value in found[-1].items()), flush=True)
        if process.wait():
            raise SystemExit(f"The run failed: {folder / 'printed.txt'}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--folder", type=Path, required=True, help="for data and run; must not hold a run yet")
    parser.add_argument("--seconds", type=float, default=5, help="between two looks")
    parser.add_argument("--flags", default="", help="further flags of train.py, in one text")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    flags = ["--num-epochs", str(args.epochs), *shlex.split(args.flags)]
    print(json.dumps({"epochs": args.epochs, "flags": args.flags, "rows": watch(flags, args.folder, args.seconds)}))


if __name__ == "__main__":
    main()
