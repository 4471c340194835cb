"""`nanocaption verify FILE`: verify a checkpoint and print what is inside."""

import json
import time
from pathlib import Path

from nanocaption.runs import checkpoint


def main(argv: list[str]) -> None:
    usage = "usage: nanocaption verify FILE    verify a checkpoint and print what is inside"
    if argv in (["-h"], ["--help"]):
        return print(usage)
    if len(argv) != 1:
        raise SystemExit(usage)
    state = checkpoint.load(argv[0])
    model = state["model_state_dict"]
    print(f"{argv[0]}: whole, digest verified; {Path(argv[0]).stat().st_size / 1e6:.1f} MB")
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.get("saved_at", 0)))
    print(f"  written by {state.get('written_by')}, {written}, on {state.get('environment')}")
    print(f"  after {state['epoch']} epochs and {state.get('step_in_epoch', 0)} steps: {state['step']} steps in all")
    print(f"  best validation loss {state.get('best_val_loss')}")
    print(f"  {len(model)} model tensors, {sum(t.numel() for t in model.values()):,} values")
    print(f"  optimizer state of {len(state['optimizer_state_dict']['state'])} parameters")
    print(f"  tokenizer of {len(json.loads(state['tokenizer'])['model']['vocab'])} tokens")
    for name, value in sorted(state["config"].items()):
        print(f"  {name} = {value!r}")
