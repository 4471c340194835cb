"""Sets whose pictures have a domain, as nocaps: scores of each, with the document frequencies of the whole set."""

import hashlib
import json
import shutil
from functools import partial

import numpy as np
import pytest

import evaluate
from nanocaption import metrics
from nanocaption.commands.score import main as score_main
from nanocaption.data.prepared import load_records
from nanocaption.score.scoring import domain_lines, domain_scores, score_captions
from tests.coco_scores import coco_scores
from tests.conftest import CUTOFF, run_command

score = partial(run_command, score_main)
pytestmark = pytest.mark.filterwarnings("ignore:.*images are few")
NAMES = ["in-domain", "near-domain", "out-domain"]


def drawn(images: int = 30) -> tuple[dict, dict, dict]:
    rng = np.random.default_rng(0)
    text = lambda: " ".join(rng.choice(list("abcdefghij"), rng.integers(5, 9)))  # noqa: E731
    references = {i: [text() for _ in range(3)] for i in range(100, 100 + images)}
    return references, {i: text() for i in references}, {i: NAMES[(7 * i) % 3] for i in references}


def test_corpus_scores_of_a_domain_are_those_of_pycocoevalcap_and_cider_the_mean_over_its_images_in_the_whole_set(
    tmp_path, capsys
):
    references, captions, domains = drawn()
    annotations = [{"image_id": i, "caption": text} for i in references for text in references[i]]
    content = {"images": [{"id": i, "domain": domains[i]} for i in references], "annotations": annotations}
    (tmp_path / "r.json").write_text(json.dumps(content))
    (tmp_path / "p.json").write_text(json.dumps({str(i): text for i, text in captions.items()}))
    files = [str(tmp_path / "r.json"), str(tmp_path / "p.json")]
    assert score([*files, "--json", str(tmp_path / "out.json")]) == 0
    found, told = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert list(found["domains"]) == NAMES and sum(d["images"] for d in found["domains"].values()) == 30
    single = metrics.score_per_image(references, captions)
    for name, domain in found["domains"].items():
        ids = [i for i in references if domains[i] == name]
        expected = coco_scores({i: references[i] for i in ids}, {i: captions[i] for i in ids})
        of_whole = float(np.mean([single[i]["CIDEr"] for i in ids]))
        assert domain["corpus"] == pytest.approx(expected | {"CIDEr": of_whole}, abs=1e-9)
        assert abs(expected["CIDEr"] - of_whole) > 1e-3  # the control: frequencies of the domain alone
        low, high = domain["intervals"]["CIDEr"]
        assert low < of_whole < high and domain["images"] == len(ids)
        (line,) = [line for line in told.splitlines() if line.startswith(name)]
        assert f" {of_whole:.4f} " in line and line.endswith(f"   {low:.4f} to {high:.4f}")
    mean = sum(d["images"] * d["corpus"]["CIDEr"] for d in found["domains"].values()) / 30
    assert mean == pytest.approx(found["CIDEr"])
    assert found["signature"].endswith("| domains: document frequencies of all these images")
    # The control: the same file without domains has no table, and the same scores.
    (tmp_path / "r.json").write_text(json.dumps(content | {"images": [{"id": i} for i in references]}))
    assert score([*files, "--json", str(tmp_path / "none.json")]) == 0
    bare = json.loads((tmp_path / "none.json").read_text())
    assert "domains" not in bare and bare["CIDEr"] == found["CIDEr"] and "domain" not in bare["signature"]


def test_evaluate_shows_the_domains_of_a_prepared_set_everywhere(demo_data, tmp_path, capsys):
    data = shutil.copytree(demo_data / "demo", tmp_path / "data" / "demo")
    content = json.loads((data / "captions.json").read_text())
    tests = [record for record in content["images"] if record["split"] == "test"]
    for place, record in enumerate(tests):
        record["domain"] = "in & out" if place % 3 else "near"
    sealed = json.dumps(content).encode()
    (data / "captions.json").write_bytes(sealed)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["captions_sha256"] = hashlib.sha256(sealed).hexdigest()
    (data / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "theirs.json").write_text(json.dumps({record["file_name"]: "a red circle" for record in tests}))
    evaluate.main(["--predictions", str(tmp_path / "theirs.json"), "--data-dir", str(tmp_path / "data"),
                   "--data-cutoff", str(CUTOFF)])  # fmt: skip
    folder = tmp_path / "eval_test_theirs"
    scores, told = json.loads((folder / "scores.json").read_text()), capsys.readouterr().out
    records = load_records(data, "test", CUTOFF)
    expected = score_captions(records, ["a red circle"] * len(records))[0]["domains"]
    assert json.loads(json.dumps(expected)) == scores["domains"] and list(scores["domains"]) == ["in & out", "near"]
    assert scores["domains"]["near"]["images"] == 8 and "domains: document frequencies of all" in scores["signature"]
    cider = 100 * scores["domains"]["near"]["corpus"]["CIDEr"]
    assert any(line.startswith("near ") and f"{cider:.1f}" in line for line in told.splitlines())
    page = (folder / "report.html").read_text()
    assert "<h2>Domains</h2>" in page and '<th scope="row">in &amp; out</th><td>16</td>' in page
    # What is written has the domains, so that anyone's captions of these pictures get them too.
    listed = json.loads((folder / "references.json").read_text())["images"]
    assert [row["domain"] for row in listed] == [record["domain"] for record in records]
    files = [str(folder / f"{name}.json") for name in ("references", "predictions")]
    assert score([*files, "--json", str(tmp_path / "o")]) == 0
    assert json.loads((tmp_path / "o").read_text())["domains"]["near"]["corpus"] == pytest.approx(
        scores["domains"]["near"]["corpus"])  # fmt: skip


def test_images_without_a_domain_are_in_none_and_a_set_without_any_has_no_table():
    references, captions, _ = drawn(6)
    measured = metrics.measure(metrics.prepare_references(references), captions)
    found = domain_scores(measured, ["a", None, "a", None, None, "b"])
    assert {name: domain["images"] for name, domain in found.items()} == {"a": 2, "b": 1}
    assert domain_scores(measured, [None] * 6) == {} and domain_lines({}) == []
