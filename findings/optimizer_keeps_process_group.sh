#!/usr/bin/env bash
# torch 2.14.1, gloo: destroy_process_group() does not end the group's threads once an optimizer has been made after
# init_process_group(). Making AdamW imports torch.distributed.nn.functional, whose functions have group.WORLD as the
# default value of an argument: bound at import, the default holds the group that is there by then, for good. Imported
# before the group is made (the default is then None), the same program leaves no thread. One would have sworn that
# destroying the group destroys it whatever was imported when. (Ours imports that module first: base/devices.py. Threads
# that outlive the group still run while the interpreter ends, where one of them may bring the process down.)
# Seen: "optimizer first seen after the group: 3 threads of gloo left", "module imported before the group: 0 ... left".
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env && env/bin/pip install -q --disable-pip-version-check torch==2.14.1 numpy 2>/dev/null
cat > one.py <<'PY'
import glob, os, sys, tempfile
import torch
import torch.distributed as dist
if sys.argv[1] == "before":
    import torch.distributed.nn.functional
store = dist.FileStore(os.path.join(tempfile.mkdtemp(), "store"), 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([weight])
dist.all_reduce(weight.data)
dist.destroy_process_group()
names = [open(path).read().strip() for path in glob.glob("/proc/self/task/*/comm")]
print(sum("gloo" in name for name in names))
sys.stdout.flush()
os._exit(0)
PY
late=$(env/bin/python one.py after); early=$(env/bin/python one.py before)
echo "optimizer first seen after the group: $late threads of gloo left"
echo "module imported before the group: $early threads of gloo left"
[ "$late" -gt 0 ] && [ "$early" = 0 ] || { echo "this has changed: look at start() in nanocaption/base/devices.py"; exit 1; }
