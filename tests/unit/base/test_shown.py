"""What would steer somebody's screen is shown as text."""

import io
import json

from nanocaption.base.files import open_to_append
from nanocaption.base.shown import ShownStream, as_markdown, shown
from nanocaption.export import card
from nanocaption.runs.log import write_row
from nanocaption.score.report_html import fill

STEERING = "\x1b[2J\x07\x9b31m\u202egpj.exe\u2066\u2028\x7f"
SEEN = "\\u001b[2J\\u0007\\u009b31m\\u202egpj.exe\\u2066\\u2028\\u007f"


def test_control_characters_escapes_and_overrides_become_text():
    assert shown(STEERING) == SEEN
    plain = "A dog\truns.\nNa\u00efve \u6771\u4eac \U0001f415 \u05e9\u05dc\u05d5\u05dd\u200f \u200d"
    assert shown(plain) == plain  # the control: texts of people stay


def test_what_a_command_prints_goes_through_it_and_bars_still_move():
    under = io.StringIO()
    stream = ShownStream(under)
    print(f"caption: {STEERING}", file=stream)
    stream.write("\r  50%|#####\x1b[31m")
    stream.write("\x1b[A")
    assert under.getvalue() == f"caption: {SEEN}\n\r  50%|#####\\u001b[31m\x1b[A"


def test_markdown_html_and_links_are_text():
    assert as_markdown("[x](http://y) <b>&lt; **a** `c` | ~~d~~ $e$ _f_ g_h www.i.j\n# k") == (
        "\\[x\\](http\\://y) \\<b\\>&amp;lt; \\*\\*a\\*\\* \\`c\\` \\| \\~\\~d\\~\\~ \\$e\\$ \\_f\\_ g_h www\\.i.j # k"
    )
    assert as_markdown("A dog runs, fast: in scene_00012.jpg.") == "A dog runs, fast: in scene_00012.jpg."


def test_a_row_of_the_card_holds_no_markup_of_a_caption_or_a_name():
    row = card._row("a|b.jpg", f"<img src=x> [go](https://x.y){STEERING}")
    assert row.count("|") - row.count("\\|") == 3 and "<img" not in row.replace("\\<", "") and "\x1b" not in row


def test_the_log_and_the_page_show_text(tmp_path):
    with open_to_append(tmp_path / "log.jsonl") as file:
        write_row(file, {"type": "samples", "caption": STEERING})
    text = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert "\x1b" not in text and "\u202e" not in text and json.loads(text)["caption"] == STEERING
    assert fill("reference", text=f"<script>{STEERING}") == fill("reference", text=f"<script>{SEEN}")
    assert "<script>" not in fill("reference", text="<script>")
