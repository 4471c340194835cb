"""Average the weights of checkpoints, or of exported folders: of one run's epochs, or of runs with the same start.

    nanocaption average runs/a/best_cider.safetensors runs/b/best_cider.safetensors -o soup.safetensors
    nanocaption average A B C -o soup.safetensors --weights 0.5,0.3,0.2

The members must have one tokenizer, the same sizes and encoder; a frozen encoder is kept as it is. The result is a
checkpoint that evaluate, caption, export and INIT_CHECKPOINT_PATH take. Training cannot resume it: it has no optimizer.
Whether a mean is better than its members only scores tell: nanocaption evaluate --split val.
"""

import argparse
import math
from pathlib import Path

_PARSER = argparse.ArgumentParser(
    prog="nanocaption average", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
)  # fmt: skip
_PARSER.add_argument("members", nargs="+", metavar="MEMBER", help="checkpoint files or exported folders, two or more")
_PARSER.add_argument("-o", "--output", type=Path, required=True, help="the new checkpoint, a .safetensors file")
_PARSER.add_argument("--weights", metavar="W,W,...", help="how much each member counts; they need not sum to 1 [all 1]")


def main(argv: list[str]) -> None:
    """Write the checkpoint that argv names. ValueError or SystemExit with one line, before anything is written."""
    arguments = _PARSER.parse_intermixed_args(argv)
    shares = read_shares(arguments.weights, len(arguments.members))
    from nanocaption.runs import checkpoint
    from nanocaption.runs.folder import is_name_of_run
    from nanocaption.use import soup
    from nanocaption.use.load import find_checkpoint

    output: Path = arguments.output
    if output.suffix != ".safetensors":
        raise SystemExit(f"-o {output}: must end in .safetensors")
    if output.exists():
        raise SystemExit(f"-o {output} is there already: name a new file, or remove it first")
    if not output.absolute().parent.is_dir():
        raise SystemExit(f"-o {output}: there is no folder {output.parent}")
    if is_name_of_run(output.name):
        raise SystemExit(f"-o {output}: training gives this name to its own checkpoints, choose another")
    members = [soup.read_member(find_checkpoint(name, "")) for name in arguments.members]
    state = soup.mean(members, shares)
    for note in soup.notes(members):
        print(note)
    checkpoint.save(output, state)
    for member in state["average_of"]:
        print("{weight:7.4f}  {name}, epoch {epoch}, step {step}".format(**member))
    print(f"{output}: the mean of {len(members)} models, {output.stat().st_size / 1e6:.1f} MB; verified")


def read_shares(text: str | None, members: int) -> list[float]:
    """How much each member counts. SystemExit with one line for too few members, and for what are no such numbers."""
    if members < 2:
        raise SystemExit("A mean takes two members or more: name another checkpoint")
    if text is None:
        return [1.0] * members
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        raise SystemExit(f"--weights {text}: must be numbers with commas between, e.g. 0.7,0.3") from None
    if len(shares) != members:
        raise SystemExit(f"--weights {text}: {len(shares)} numbers for {members} members, give each one")
    if not all(0 < share < math.inf for share in shares):
        raise SystemExit(f"--weights {text}: each must be above 0, and finite; leave out whom you do not want")
    return shares
