"""make bench: results are kept one by one, failures are written down, and the pages' tables are what they give."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run, table
from tests.conftest import ROOT

FAKE = """
from benchmarks import table

def measure(kind="fine", ours=2.0):
    if kind == "absent":
        raise table.CannotRun("no such thing here")
    if kind == "import":
        import a_peer_that_is_not_installed
    if kind == "broken":
        raise ValueError("the two sides differ")
    if kind == "killed":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return [{"name": "fine", "ours": ours, "peer": 1.0, "ratio": ours, "unit": "s", "range": [1.5, 2.5], "note": ""}]
"""


def job(*names: str, **arguments: Any) -> run.Job:
    return run.Job("fake_benchmark", names, arguments)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Processes of jobs find a benchmark "fake_benchmark"; gives the results' path. No torch: it takes seconds."""
    (tmp_path / "fake_benchmark.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "results.json"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job in this process, where importing torch costs nothing any more."""
    def answer(one: run.Job) -> dict[str, Any]:
        return {"rows": __import__(one.module).measure(**one.arguments), "machine": run.machine(),
                "versions": run.versions()}  # fmt: skip

    monkeypatch.setattr(run, "in_a_process", answer)


def test_what_cannot_run_or_fails_is_written_down_and_the_rest_goes_on(fakes, capsys):
    jobs = [
        job("absent", kind="absent"), job("import", kind="import"), job("broken", kind="broken"),
        job("killed", kind="killed"),
    ]  # fmt: skip
    assert run.run(jobs, fakes) == ["broken", "killed"]  # the other two only lack something
    results = json.loads(fakes.read_text())
    assert results["absent"]["not_run"] == "no such thing here" and "a_peer_that" in results["import"]["not_run"]
    assert results["broken"]["not_run"] == "ValueError: the two sides differ"
    assert results["killed"]["not_run"] == "its process ended with status -9"
    assert "[4/4] killed" in capsys.readouterr().out


def test_only_some_are_measured_anew_and_the_others_stay(fakes, here, monkeypatch):
    fakes.write_text(json.dumps({"other": {"ours": 7.0}, "fine": {"ours": 0.0}}))
    assert run.run([job("fine", "missing")], fakes) == ["missing"]
    results = json.loads(fakes.read_text())
    assert results["other"] == {"ours": 7.0}
    fine = results["fine"]
    assert (fine["ours"], fine["peer"], fine["ratio"], fine["unit"], fine["range"]) == (2.0, 1.0, 2.0, "s", [1.5, 2.5])
    assert {"seconds", "date", "note"} <= fine.keys() and fine["machine"]["cores"] >= 1
    assert set(fine["versions"]) == {"python", "torch", "transformers", "numpy"}
    assert "no row of this name" in results["missing"]["not_run"]
    assert [path.name for path in fakes.parent.glob("*.json*")] == ["results.json"]  # nothing temporary is left

    asked = []
    monkeypatch.setattr(run, "run", lambda jobs, path: asked.append((jobs, path)) or [])
    run.main(["--only", "rewards", "scoring_1000x5_cold", "--results", str(fakes)])
    assert [one.module for one in asked[0][0]] == ["benchmarks.scoring", "benchmarks.rewards"]


def test_a_run_that_is_stopped_keeps_what_is_done(fakes, here):
    def stopped() -> list[run.Job]:
        yield job("fine", ours=3.0)
        raise KeyboardInterrupt

    class Jobs(list):
        def __iter__(self):
            return stopped()

    with pytest.raises(KeyboardInterrupt):
        run.run(Jobs([None, None]), fakes)
    assert json.loads(fakes.read_text())["fine"]["ours"] == 3.0


def test_a_damaged_file_of_results_is_told_before_any_work(fakes):
    fakes.write_text("{")
    with pytest.raises(SystemExit, match="is no JSON .* move it away"):
        run.run([job("fine")], fakes)
    assert fakes.read_text() == "{"


def test_the_jobs_have_the_names_that_are_promised():
    names = [name for one in run.JOBS for name in one.names]
    assert len(set(names)) == len(names) and set(table.SHOWN) <= set(names)
    assert set(names) >= {
        "train_step_encoder_trained", "train_step_frozen_tiny", "train_step_frozen_base", "beam3_captioning",
        "scoring_1000x5_cold", "scoring_1000x5_prepared", "image_pipeline", "image_pipeline_cached",
        "checkpoint_save", "rewards", "scaling_captions_145000_vs_1000", "memory_epochs", "start_to_first_step",
        "gloo_2_processes",
    }  # fmt: skip
    for one in run.JOBS:
        assert (ROOT / f"{one.module.replace('.', '/')}.py").is_file()


def result(**changed: Any) -> dict[str, Any]:
    machine = {"cpu": "A CPU", "cores": 2, "threads": 2, "ram_gb": 15.6, "gpu": None}
    versions = {"python": "3.11.7", "torch": "2.14.1", "transformers": "5.23.0", "numpy": "2.4.6"}
    return {"ours": 1234.5, "peer": 0.0123, "ratio": 4.567, "unit": "captions/s", "range": [4.5, 4.6], "note": "",
            "date": "2026-11-21 08:00", "machine": machine, "versions": versions} | changed  # fmt: skip


def test_the_table_says_what_was_measured_where_and_what_was_not():
    results = {
        "train_step_frozen_tiny": result(),
        "start_to_first_step": result(peer=None, ratio=None, range=None, unit="s"),
        "rewards": {"not_run": "no such thing here", "date": "2026-11-21 08:00"},
    }  # fmt: skip
    text = table.table(results)
    row = next(line for line in text.splitlines() if "ViT-Tiny frozen" in line)
    assert "| 1,234 captions/s | 0.012 captions/s, `VisionEncoderDecoderModel`, `Trainer` | 4.57x [4.50-4.60] |" in row
    assert "| start to first step, nothing cached | 1,234 s | - | - |" in text
    assert "A CPU, 2 cores, 16 GB; python 3.11.7" in text and "CIDEr rewards of 250 captions (no such thing" in text
    assert "beam 3 from pixels, ViT-Tiny at 224 px, 100 pictures at once (not measured yet)" in text
    other = result(machine={"cpu": "B", "cores": 8, "threads": 8, "ram_gb": 64.0, "gpu": "A GPU"})
    both = table.table(results | {"beam3_captioning": other})
    assert both.count("|---|---|---|---|") == 2  # a table for each machine
    assert "Not measured yet" in table.table({})


def test_the_table_is_put_between_the_markers_and_nowhere_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write(readme, {"rewards": result()})
    before, made, after = table.split(readme.read_text())
    assert (before, after) == (f"before\n{table.BEGIN}\n", f"{table.END}\nafter\n")
    assert made == table.table({"rewards": result()}) and "old" not in made
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match="has not the two lines"):
        table.write(readme, {})


def test_the_pages_hold_the_tables_of_the_results():
    """Else: python benchmarks/run.py --table"""
    for page, names in (("docs/performance.md", tuple(table.SHOWN)), ("README.md", table.README)):
        made = table.split((ROOT / page).read_text(encoding="utf-8"))[1]
        assert made == table.table(run.read(run.RESULTS), names), page
    assert len(table.README) == 6
