"""What the documents beside the README name is there."""

import hashlib
import re

import evaluate
from nanocaption.base.settings import declared_settings
from nanocaption.commands import caption
from tests.conftest import ROOT

CONSTANTS = declared_settings().constants  # cached: changed here, changed for load_settings

FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")


def test_the_faq_names_settings_flags_and_files_that_exist():
    settings = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", FAQ))
    assert len(settings) > 15 and settings <= set(CONSTANTS), settings - set(CONSTANTS)
    own = caption._PARSER.format_help() + evaluate._PARSER.format_help()
    for flag in set(re.findall(r"--[a-z][a-z-]+", FAQ)):
        name = flag[2:].replace("-", "_").upper()
        assert name in CONSTANTS or flag in own, flag
    for path in re.findall(r"\b[\w/]+\.py\b", FAQ):
        assert (ROOT / path).is_file(), path


def test_the_licence_is_the_standard_text_and_named_in_the_citation():
    # sha256 of apache.org/licenses/LICENSE-2.0.txt
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()


def test_contributing_takes_ten_lines():
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    assert [line.split(".")[0] for line in lines[2:]] == [str(number) for number in range(1, 11)]
