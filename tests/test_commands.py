"""How scripts begin and end: mistakes, a full disk and Ctrl-C without a traceback."""

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import commands
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
    assert commands.told(full) == "out/captions.json: No space left on device: free some space, or name another place"
    assert commands.told(OSError(errno.ENOSPC, "No space left on device")).startswith("No space left on device: free")
    with pytest.raises(OSError) as missing:
        Path("nowhere/x.json").read_text()
    assert commands.told(missing.value) == "nowhere/x.json: No such file or directory"
    assert commands.told(OSError("the Hub is silent")) == "the Hub is silent"
    assert commands.told(ValueError("BEAM_SIZE = 0")) == "BEAM_SIZE = 0"


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
            commands.run(main, "Stopped half-way.")
        codes.append(left.value.code)
    assert codes == ["BEAM_SIZE = 0: must be 1 or more", 3, 130, 0]
    assert capsys.readouterr().err == "warning: few images\n\nStopped half-way.\n"


@pytest.mark.parametrize("script", ["evaluate.py", "export.py", "demo.py", "caption.py"])
def test_ctrl_c_while_libraries_are_loaded_leaves_no_traceback(script, tmp_path):
    if script == "demo.py" and importlib.util.find_spec("gradio") is None:
        pytest.skip("without Gradio it ends before")
    arguments = {"export.py": ["nowhere.safetensors", "out"], "caption.py": [str(ROOT / "docs" / "demo.png")]}
    command = [sys.executable, str(ROOT / script), *arguments.get(script, [])]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and "libtorch" not in maps.read_text():
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in told, told
