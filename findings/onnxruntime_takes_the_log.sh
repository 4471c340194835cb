#!/usr/bin/env bash
# onnxruntime 1.32.0: importing onnxruntime.quantization.matmul_nbits_quantizer sets up logging for the whole program: the
# root logger gets a handler and the level INFO at import, before anything is called, so that every library's info
# messages appear from there on and the program's own logging.basicConfig() does nothing. One would have sworn that a
# library leaves the root logger to the program. (Ours puts it back: export/as_onnx.py.)
# Seen: "before: WARNING, 0 handlers", "after: INFO, 1 handlers", "basicConfig(level=ERROR): INFO".
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 onnx-ir==1.1.0 numpy 2>/dev/null
env/bin/python - > seen <<'PY'
import logging
def state(): return f"{logging.getLevelName(logging.root.level)}, {len(logging.root.handlers)} handlers"
print("before:", state())
import onnxruntime.quantization.matmul_nbits_quantizer
print("after:", state())
logging.basicConfig(level=logging.ERROR)
print("basicConfig(level=ERROR):", logging.getLevelName(logging.root.level))
PY
cat seen
[ "$(cat seen)" = "before: WARNING, 0 handlers
after: INFO, 1 handlers
basicConfig(level=ERROR): INFO" ] || { echo "this has changed: look at nanocaption/export/as_onnx.py"; exit 1; }
