"""docs/data.md: a row for each layout that the code knows, and no test named there that does not exist."""

import re

from nanocaption.prepare import caption_json, layouts
from tests.raw_sets import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = [re.split(r"(?<!\\)\|", line)[1:-1] for line in PAGE.splitlines() if line.startswith("| ")][1:]


def test_each_layout_has_a_row():
    names = {layout.name for layout in layouts.LAYOUTS} | {shape.name for shape in caption_json.SHAPES}
    assert all(len(row) == 5 for row in ROWS)
    assert names <= {row[0].strip() for row in ROWS}


def test_each_row_names_tests_that_exist():
    files = [*(ROOT / "tests").rglob("test_*.py")]
    defined = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)}
    for row in ROWS:
        named = re.findall(r"`(test_\w+(?:\.py)?)`", row[3])
        assert named and set(named) <= defined | {file.name for file in files}, row[0]
