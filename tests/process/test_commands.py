"""How scripts begin and end: mistakes, a full disk and Ctrl-C without a traceback."""

import contextlib
import errno
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from nanocaption.base import cli
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def handlers_put_back():
    before, show = signal.getsignal(signal.SIGINT), warnings.showwarning
    with warnings.catch_warnings():
        yield
    signal.signal(signal.SIGINT, before)
    warnings.showwarning = show


def test_errors_of_the_system_name_the_file_and_the_way_on():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/.captions.json.4711.part")
    assert cli.told(full) == "out/captions.json: No space left on device: free some space, or name another place"
    assert cli.told(OSError(errno.ENOSPC, "No space left on device")).startswith("No space left on device: free")
    with pytest.raises(OSError) as missing:
        Path("nowhere/x.json").read_text()
    assert cli.told(missing.value) == "nowhere/x.json: No such file or directory"
    assert cli.told(OSError("the Hub is silent")) == "the Hub is silent"
    assert cli.told(ValueError("BEAM_SIZE = 0")) == "BEAM_SIZE = 0"


def test_an_error_in_a_process_that_reads_pictures_is_the_same_one_line():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise ValueError("The picture a.jpg cannot be read: truncated\nhint: look at it")

    with pytest.raises(ValueError) as wrapped:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1, multiprocessing_context="fork")))
    assert "Traceback" in str(wrapped.value)
    assert cli.told(wrapped.value) == "The picture a.jpg cannot be read: truncated\nhint: look at it"


def test_the_end_of_a_script_is_its_code_and_one_line(capsys):
    def fails(argv: list[str]) -> None:
        raise ValueError("BEAM_SIZE = 0: must be 1 or more")

    def warns(argv: list[str]) -> int:
        for _ in range(2):
            warnings.warn("few images", stacklevel=1)
        return 3

    def interrupted(argv: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    codes = []
    for main in (fails, warns, interrupted, lambda argv: None):
        with pytest.raises(SystemExit) as left:
            cli.run(main, "Stopped half-way.")
        codes.append(left.value.code)
    assert codes == ["BEAM_SIZE = 0: must be 1 or more", 3, 130, 0]
    assert capsys.readouterr().err == "warning: few images\n\nStopped half-way.\n"


def test_an_output_that_nobody_reads_and_a_ctrl_c_meant_for_others(tmp_path):
    (tmp_path / "long.py").write_text(
        "import sys\nfrom nanocaption.base import cli\ncli.begin()\n"
        "def main(argv):\n    for number in range(int(argv[0])):\n        print(number)\n"
        "cli.run(main)\n"
    )
    command = f"{sys.executable} {tmp_path / 'long.py'}"
    place = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    for number, code in ((100_000, 141), (1, 0)):
        pipe = f"{command} {number} | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", pipe], **place)
        assert done.stdout.split() == ["0", str(code)] and done.stderr == ""
    (tmp_path / "deaf.py").write_text(
        "import os, signal\nfrom nanocaption.base import cli\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "cli.begin()\ncli.run(lambda argv: os.kill(os.getpid(), signal.SIGINT))\n"
    )
    done = subprocess.run([sys.executable, str(tmp_path / "deaf.py")], **place)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_begins_where_its_output_is_caught_within_python():
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        cli.begin()
        print("there")
    assert caught.getvalue() == "there\n"


def test_closed_streams_and_names_that_are_no_text(tmp_path):
    (tmp_path / "says.py").write_text(
        "import sys\nfrom nanocaption.base import cli\ncli.begin()\n"
        "def main(argv):\n    print('bad\\udcff.jpg', sys.stdin.read(), sys.stdout.isatty())\n"
        "cli.run(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    for closed, expected in (("", "bad\\udcff.jpg  False\n"), ("<&-", "bad\\udcff.jpg  False\n"), (">&- <&- 2>&-", "")):
        line = f"{sys.executable} {tmp_path / 'says.py'} {closed or '</dev/null'}"
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.parametrize(
    "script",
    ["evaluate", *(pytest.param(name, marks=pytest.mark.long) for name in ("export", "demo", "caption"))],
)
def test_ctrl_c_while_libraries_are_loaded_leaves_no_traceback(script, tmp_path):
    """The import of torch writes a file and waits within it, so that the signal always finds it there."""
    if script == "demo" and importlib.util.find_spec("gradio") is None:
        pytest.skip("without Gradio it ends before")
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "import pathlib, sys, time\nclass Slow:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch._utils':\n            pathlib.Path('importing').touch()\n"
        "            time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hook")}
    arguments = {"export": ["nowhere.safetensors", "out"], "caption": [str(ROOT / "docs" / "demo.png")]}
    command = [sys.executable, "-m", "nanocaption", script, *arguments.get(script, [])]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        while process.poll() is None and not (tmp_path / "importing").exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in told, told
