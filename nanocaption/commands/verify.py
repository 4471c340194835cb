"""`nanocaption verify FILE_OR_FOLDER`: verify a checkpoint or an exported folder, and print what is inside."""

import json
import time
from pathlib import Path

_USAGE = "usage: nanocaption verify FILE    verify a checkpoint, or an exported folder, and print what is inside"


def main(argv: list[str]) -> None:
    if argv in (["-h"], ["--help"]):
        return print(_USAGE)
    if len(argv) != 1:
        raise SystemExit(_USAGE)
    from nanocaption.base.tensors import weights_told
    from nanocaption.model import exported  # --help works without safetensors
    from nanocaption.runs import checkpoint

    path = Path(argv[0])
    state = exported.read(path) if path.is_dir() else checkpoint.load(path)
    size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file())
    print(f"{path}: whole, digest verified; {size / 1e6:.1f} MB")
    if "saved_at" in state:
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(state["saved_at"]))
        print(f"  written by {state.get('written_by')}, {written}, on {state.get('environment')}")
    print(f"  after {state['epoch']} epochs and {state.get('step_in_epoch', 0)} steps: {state['step']} steps in all")
    print(f"  best validation loss {state.get('best_val_loss')}")
    model = state["model_state_dict"]
    print(f"  {len(model)} model tensors, {sum(t.numel() for t in model.values()):,} values")
    if told := weights_told(state):
        print(f"  the weights are {told}")
    for member in state.get("average_of", []):
        print("    {name}: weight {weight:.4g}, epoch {epoch}, step {step}, sha256 {sha256}".format(**member))
    if "raw_state_dict" in state:
        print(f"  beside them the weights that its training goes on with: {len(state['raw_state_dict'])} tensors")
    if "optimizer_state_dict" in state:
        print(f"  optimizer state of {len(state['optimizer_state_dict']['state'])} parameters")
    print(f"  tokenizer of {len(json.loads(state['tokenizer'])['model']['vocab'])} tokens")
    for name, value in sorted(state["config"].items()):
        print(f"  {name} = {value!r}")
