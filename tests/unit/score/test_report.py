"""The result page, the curves and the reading of log.jsonl."""

import base64
import html
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nanocaption.base.files import read_log
from nanocaption.data.pictures import data_uri, read_picture, thumbnail
from nanocaption.data.transform import seen_part
from nanocaption.score.curves import curve_charts, extract_curves, plot_curves, smooth_curve
from nanocaption.score.report import choose_rows, shown_rows, write_report
from nanocaption.score.report_html import format_score, format_value, repeated_words

CORPUS = {"Bleu_1": 0.6149, "Bleu_2": 0.5, "Bleu_3": 0.4, "Bleu_4": 0.3, "CIDEr": 0.934, "ROUGE_L": 0.55}
HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)> "a" & \'b\' {{cards}}'


@pytest.fixture(autouse=True)
def few_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts, a fifth of a second each, are drawn for the tests of charts alone."""
    if not any(word in request.node.name for word in ("chart", "curve", "histogram", "resumed", "finite")):
        monkeypatch.setattr("nanocaption.score.report_html.svg", lambda _: "<svg></svg>")


def make_rows(folder: Path, ciders: list[float]) -> list[dict]:
    folder.mkdir(exist_ok=True)
    rows = []
    for i, cider in enumerate(ciders):
        name = f"p{i}.png"
        Image.new("RGB", (320, 240), (i % 256, 90, 160)).save(folder / name)
        rows.append(
            {"file_name": name, "caption": f"a dog number {i}", "references": ["one dog"], "cider": cider}
        )
    return rows


def make_history(steps: int = 60, per_epoch: int = 20) -> list[dict]:
    rows: list[dict] = [{"type": "start", "step": 0}]
    for step in range(1, steps + 1):
        rows.append(
            {"type": "train", "step": step, "epoch": step / per_epoch, "loss": 1 + 4 / step, "lr": 1e-3}
        )
        if step % per_epoch == 0:
            rows.append({"type": "val", "step": step, "epoch": step // per_epoch, "val_loss": 1.5 + 4 / step,
                         "CIDEr": 0.01 * step})  # fmt: skip
    return rows


def write_page(tmp_path: Path, rows: list[dict], **changes) -> str:
    arguments = {
        "title": "run",
        "scores": {"corpus": CORPUS},
        "predictions": rows,
        "images_dir": tmp_path / "images",
    }
    write_report(tmp_path / "report.html", **{**arguments, **changes})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Start tags with their attributes, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def test_text_of_the_data_never_becomes_markup(tmp_path):
    rows = make_rows(tmp_path / "images", [1.0])
    calm = Elements(write_page(tmp_path, rows))
    rows[0].update(caption=HOSTILE, references=[HOSTILE, "x"])
    scores = {
        "corpus": {**CORPUS, "<b>": 0.1, HOSTILE: 0.2},
        "signature": HOSTILE,
        "split": HOSTILE,
        "text": {HOSTILE: 1},
        "truth": {HOSTILE: {"true": 1, "claims": 2}},
        "confusions": {kind: [(HOSTILE, HOSTILE, 1), (HOSTILE, "x", 2)] for kind in ("colours", "things")},
    }
    page = write_page(tmp_path, rows, title=HOSTILE, scores=scores)
    hostile = Elements(page)
    assert calm.count("script") == hostile.count("script") == 1
    assert calm.count("img") == hostile.count("img") == 1
    assert not [attrs for _, attrs in hostile.found if any(key.startswith("on") for key in attrs)]
    assert page.count(html.escape(HOSTILE)) >= 6  # shown as what it is, its placeholder left alone


def test_a_hostile_file_name_stays_inside_its_attribute(tmp_path):
    rows = make_rows(tmp_path / "images", [1.0])
    name = '" onload="alert(1)'
    (tmp_path / "images" / "p0.png").rename(tmp_path / "images" / name)
    rows[0]["file_name"] = name
    elements = Elements(write_page(tmp_path, rows))
    assert [attrs["data-name"] for tag, attrs in elements.found if tag == "article"] == [name]
    assert not [attrs for _, attrs in elements.found if "onload" in attrs]


def test_the_page_loads_nothing_from_outside_and_allows_only_its_own_script(tmp_path):
    page = write_page(tmp_path, make_rows(tmp_path / "images", [1.0]), history=make_history())
    links = [a[key] for _, a in Elements(page).found for key in ("src", "href") if key in a]
    assert links and all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not re.search(r"https?:|@import|url\(", page)
    assert "default-src 'none'" in page and re.search(r"script-src 'sha256-[\w+/]{43}='", page)


def test_scores_are_fractions_times_100_with_one_decimal(tmp_path):
    assert [format_score(v) for v in (0.934, 0.6149, 1.0125, 0)] == ["93.4", "61.5", "101.2", "0.0"]
    assert format_score(math.nan) == "–"
    scores = {"corpus": CORPUS, "leave_one_out": {**CORPUS, "CIDEr": 1.868}, "signature": "bleu|v1"}
    page = write_page(tmp_path, make_rows(tmp_path / "images", [1.2345]), scores=scores)
    row = re.search(r'<tr data-metric="CIDEr">.*?</tr>', page)[0]
    assert re.findall(r"<td>(.*?)</td>", row) == ["93.4", "186.8", "50 %"]
    assert "<b>123.5</b> CIDEr" in page or "<b>123.4</b> CIDEr" in page
    assert "bleu|v1" in page and "References against each other" in page


def test_without_references_scores_the_table_has_one_column(tmp_path):
    page = write_page(tmp_path, make_rows(tmp_path / "images", [1.0]))
    assert re.findall(r"<td>(.*?)</td>", re.search(r'<tr data-metric="Bleu_1">.*?</tr>', page)[0]) == ["61.5"]
    assert "References against each other" not in page


def test_truth_rates_say_how_many_of_how_many_and_stand_no_claims(tmp_path):
    truth = {"things": {"true": 812, "claims": 830}, "relations": {"true": 0, "claims": 0}}
    page = write_page(
        tmp_path, make_rows(tmp_path / "images", [1.0]), scores={"corpus": CORPUS, "truth": truth}
    )
    assert "97.8 %" in page and "812 of 830 true" in page and "<b>–</b>" in page


def test_statistics_of_the_text_are_all_shown(tmp_path):
    assert [format_value(v) for v in (1234, 10.43, 0.0312, 1234.5)] == ["1,234", "10.4", "0.0312", "1,234.5"]
    scores = {"corpus": CORPUS, "text": {"mean_length": 10.43, "repetition": 0.031, "captions": 24}}
    page = write_page(tmp_path, make_rows(tmp_path / "images", [1.0]), scores=scores)
    for text in ("Words per caption</dt><dd>10.4", "Repeat themselves</dt><dd>3.1 %", "Captions</dt><dd>24"):
        assert text in page


def test_of_many_pictures_the_best_the_worst_and_some_between_are_shown(tmp_path):
    rows = make_rows(tmp_path / "images", [i / 10 for i in range(30)])
    elements = Elements(page := write_page(tmp_path, rows, max_images=9))
    shown = [attrs["data-name"] for tag, attrs in elements.found if tag == "article"]
    assert shown[:3] == ["p29.png", "p28.png", "p27.png"] and shown[-3:] == ["p2.png", "p1.png", "p0.png"]
    assert len(set(shown)) == 9 and elements.count("img") == 9
    assert "9 of 30 pictures" in page and "all 30 pictures" in write_page(tmp_path, rows)


@pytest.mark.parametrize("limit", range(1, 12))
def test_the_cap_holds_and_keeps_the_order(limit):
    rows = list(range(11))
    chosen = choose_rows(rows, limit)
    assert len(chosen) == limit and chosen == sorted(set(chosen))


def test_pictures_are_embedded_small_upright_and_on_white(tmp_path):
    picture = Image.new("RGB", (1000, 500), "red")
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (600, 600), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert thumbnail(tmp_path / "turned.jpg").size == (112, 224)
    clear = thumbnail(tmp_path / "clear.png")
    assert clear.size == (224, 224)
    data = base64.b64decode(data_uri(clear).removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG" and min(image.convert("L").tobytes()) > 250


@pytest.mark.parametrize("kind", ["uint16.png", "int32.tiff", "float32.tiff", "large.jpg", "turned.jpg"])
def test_a_small_picture_shows_what_the_encoder_is_given(tmp_path, kind):
    values = np.add.outer(np.arange(1000), np.arange(800)) / 1800  # 0..1
    path = tmp_path / kind
    if kind.endswith("jpg"):
        exif = Image.Exif()
        exif[0x0112] = 6 if kind == "turned.jpg" else 1
        Image.fromarray((values * 255).astype(np.uint8)).convert("RGB").save(path, exif=exif)
    else:
        dtype = kind.partition(".")[0]
        Image.fromarray((values * {"uint16": 65535, "int32": 255, "float32": 1}[dtype]).astype(dtype)).save(path)
    whole = Image.fromarray(read_picture(path).pixels)
    small = thumbnail(path)
    assert small.size == ((224, 179) if kind == "turned.jpg" else (179, 224))
    difference = np.abs(np.asarray(small, float) - np.asarray(whole.resize(small.size), float))
    assert difference.mean() < 3 and np.asarray(whole).std() > 40
    left, top, _, _ = seen_part(path, {"crop": True, "size": 224, "resize": 256})
    cut = ((1 - 224 / 256) / 2, (1 - 224 / 320) / 2)  # of the shorter side, of the longer
    assert (left, top) == pytest.approx(cut[::-1] if kind == "turned.jpg" else cut, abs=2e-3)


def test_a_missing_or_broken_picture_is_named_and_no_page_is_left(tmp_path):
    rows = make_rows(tmp_path / "images", [1.0, 0.5])
    (tmp_path / "images" / "p1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"p1\.png cannot be read: not a picture"):
        write_page(tmp_path, rows)
    (tmp_path / "images" / "p1.png").unlink()
    with pytest.raises(ValueError, match=r"p1\.png cannot be read: missing"):
        write_page(tmp_path, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_words_that_stutter_or_repeat_a_pair_are_marked(tmp_path):
    def repeated(text: str) -> list[str]:
        words = text.split()
        return [word for word, flag in zip(words, repeated_words(words), strict=True) if flag]

    assert repeated("a dog dog runs") == ["dog"]
    assert repeated("A dog, and a dog") == ["dog"]
    assert repeated("a red ball and a blue kite near the sea") == []
    assert repeated("") == [] and repeated("- - -") == []
    rows = make_rows(tmp_path / "images", [1.0])
    rows[0]["caption"] = "a <b> <b>"
    assert "a &lt;b&gt; <mark>&lt;b&gt;</mark>" in write_page(tmp_path, rows)


def test_a_caption_with_a_lone_surrogate_does_not_break_the_page(tmp_path):
    rows = make_rows(tmp_path / "images", [1.0])
    rows[0]["caption"] = json.loads('"caf\\u00e9 \\ud800"')
    assert "café \\ud800" in write_page(tmp_path, rows)


def test_the_curves_of_the_page_come_from_the_log(tmp_path):
    rows = make_rows(tmp_path / "images", [1.0])
    page = write_page(tmp_path, rows, history=make_history())
    assert page.count("<svg") == 3 and page.count("<title>epoch ") == 6
    assert "<title>epoch 3: 1.567</title>" in page and "<title>epoch 3: 60.0</title>" in page
    assert write_page(tmp_path, rows, history=make_history()) == page
    assert write_page(tmp_path, rows).count("<svg") == 1  # the lengths
    assert "no losses" in write_page(tmp_path, rows, history=[{"type": "start"}])


def test_charts_of_one_page_share_no_names_and_take_their_colours_from_it(tmp_path):
    page = write_page(tmp_path, make_rows(tmp_path / "images", [1.0, 2.0]), history=make_history())
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 4 and not re.search(r"<style|xmlns|clip-path|<metadata", "".join(charts))
    names = [attrs["id"] for chart in charts for _, attrs in Elements(chart).found if "id" in attrs]
    for name in set(names):  # the shape of a dot: one shape has one name
        assert len(set(re.findall(rf'<path id="{name}"[^>]*>', page))) == 1
    colours = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", "".join(charts)))
    assert colours == {"none", "var(--train)", "var(--val)", "var(--good)", "var(--soft)", "var(--line)"}


def test_a_resumed_run_draws_only_what_still_holds():
    old = [{"type": "train", "step": s, "epoch": s / 10, "loss": 9.0} for s in range(1, 31)]
    new = [{"type": "train", "step": s, "epoch": s / 10, "loss": 1.0} for s in range(11, 16)]
    curves = extract_curves([*old, {"type": "resume", "step": 10}, *new])
    assert [y for _, y in curves.train] == [9.0] * 10 + [1.0] * 5
    repeated = extract_curves([*old, *new])
    assert [y for _, y in repeated.train] == [9.0] * 10 + [1.0] * 5 + [9.0] * 15


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path):
    history = [*make_history(), {"type": "train", "step": 61, "epoch": 3.05, "loss": math.nan}]
    curves = extract_curves(history)
    assert len(curves.train) == 60 and curves.note.endswith(": 1")
    assert curves.note in write_page(tmp_path, make_rows(tmp_path / "images", [1.0]), history=history)
    assert extract_curves(make_history()).note is None


def test_smoothing_keeps_a_line_and_flattens_a_spike():
    line = [(i, 2.0 * i) for i in range(200)]
    assert all(
        math.isclose(a[1], b[1], abs_tol=1e-9) for a, b in zip(smooth_curve(line), line, strict=True)
    )
    spiked = [(i, 11.0 if i == 100 else 0.0) for i in range(200)]
    assert max(y for _, y in smooth_curve(spiked)) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["both", "val", "one"])
def test_plot_curves_writes_a_whole_png(tmp_path, kind):
    history = [row for row in make_history() if kind == "both" or row["type"] == kind]
    if kind == "one":
        history = [{"type": "train", "step": 1, "loss": 3.0}]
    path = tmp_path / "new" / "curves.png"
    plot_curves(history, path, "a $run$ with_signs")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20  # something is drawn
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]


def test_rewards_have_a_panel_of_their_own_and_their_loss_is_none():
    """The loss of a policy gradient is about 0: as a training loss it would look like a triumph."""
    rows = [{"type": "train", "step": n, "epoch": n / 4, "loss": 3.0 if n < 5 else 0.01} for n in range(1, 9)]
    rows = [row | ({"reward": 0.1 * row["step"]} if row["step"] > 4 else {}) for row in rows]
    curves = extract_curves(rows)
    assert [y for _, y in curves.train] == [3.0] * 4
    assert curves.reward == [(n / 4, pytest.approx(0.1 * n)) for n in range(5, 9)]
    assert [chart.title for chart in curve_charts(curves)] == ["Loss per token", "Reward of drawn captions"]
    assert len(curve_charts(extract_curves(rows[:4]))) == 1


def test_plot_curves_refuses_a_log_without_losses(tmp_path):
    for history in ([], [{"type": "start", "step": 0}], [{"type": "train", "step": 1, "loss": math.nan}]):
        with pytest.raises(ValueError, match="no finite loss"):
            plot_curves(history, tmp_path / "c.png", "run")
    assert not list(tmp_path.iterdir())


def test_read_log_returns_the_rows_and_leaves_out_a_torn_last_line(tmp_path):
    path, rows = tmp_path / "log.jsonl", make_history(5)
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(whole)
    assert read_log(path) == rows
    path.write_bytes(whole.removesuffix(b"\n"))  # complete, only its newline is missing
    assert read_log(path) == rows
    for torn in (b'{"type": "train", "st', b'{"name": "caf\xc3', b"12"):
        path.write_bytes(whole + torn)
        assert read_log(path) == rows


def test_read_log_names_a_broken_line_in_the_middle(tmp_path):
    path = tmp_path / "log.jsonl"
    for broken in ('{"type": "tra', "12", "\ufffd"):
        path.write_text(f'{{"type": "start"}}\n{broken}\n{{"type": "val"}}\n', encoding="utf-8")
        with pytest.raises(ValueError, match=r"log\.jsonl, line 2"):
            read_log(path)
    path.write_text(
        '{"type": "start"}\n{"type": "tra\n', encoding="utf-8"
    )  # its newline says it was not torn
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2"):
        read_log(path)
    with pytest.raises(ValueError, match="no such log"):
        read_log(tmp_path / "none.jsonl")


# --- intervals, distributions, confusions, maps ---


def test_intervals_stand_under_the_model_s_scores(tmp_path):
    scores = {"corpus": CORPUS, "intervals": {"CIDEr": [0.9, 0.9712]}, "leave_one_out": CORPUS}
    page = write_page(tmp_path, make_rows(tmp_path / "images", [1.0]), scores=scores)
    row = re.search(r'<tr data-metric="CIDEr">.*?</tr>', page)[0]
    assert re.findall(r"<td>(.*?)</td>", row) == ["93.4<small>90.0–97.1</small>", "93.4", "100 %"]
    assert "95 % interval" in page


def test_histograms_count_every_picture_also_those_not_shown(tmp_path):
    rows = make_rows(tmp_path / "images", [0.1] * 5 + [0.3] * 4 + [2.0])
    rows[0]["caption"] = "one"
    page = write_page(tmp_path, rows, max_images=2)
    assert "<title>1 words: 10.0 %</title>" in page and "<title>4 words: 90.0 %</title>" in page
    assert "<title>CIDEr from 10: 50.0 %</title>" in page and "<title>CIDEr from 200: 10.0 %</title>" in page


def test_confusions_are_a_table_of_colours_and_a_list_of_mistaken_things(tmp_path):
    confusions = {
        "colours": [("red", "red", 8), ("red", "pink", 2), ("blue", "<b>", 1)],
        "things": [("car", "car", 5), ("kite", "balloon", 3), ("nothing", "sun", 1)],
    }
    page = write_page(
        tmp_path, make_rows(tmp_path / "images", [1.0]), scores={"corpus": CORPUS, "confusions": confusions}
    )
    assert "8 of 11 right" in page and 'title="red, said pink: 2"' in page and "said &lt;b&gt;: 1" in page
    assert "5 of 9 right" in page and "<span>balloon</span><small>kite</small>" in page
    assert 'class="matrix"' not in write_page(tmp_path, make_rows(tmp_path / "images", [1.0]))


def with_maps(row: dict, rows: int = 2, cols: int = 3) -> dict:
    """The row with maps that are bright at one place only, for word n at place n."""
    words = [
        {"text": text, "weights": [255 if i == n else 0 for i in range(rows * cols)]}
        for n, text in enumerate(row["caption"].split())
    ]
    return row | {"attention": {"rows": rows, "cols": cols, "words": words}}


def test_maps_are_kept_as_bytes_beside_the_words_they_belong_to(tmp_path):
    (row,) = make_rows(tmp_path / "images", [1.0])
    row["caption"] = "a <b> dog <b>, it <b>"
    page = write_page(tmp_path, [with_maps(row)])
    card = next(attrs for tag, attrs in Elements(page).found if tag == "article")
    maps = base64.b64decode(card["data-maps"])
    assert card["data-grid"] == "2,3" and card["data-box"] == "0,0,1,1"
    assert [maps[6 * n : 6 * n + 6].index(255) for n in range(6)] == list(range(6))
    words = [attrs for tag, attrs in Elements(page).found if tag == "button"]
    assert [word["data-n"] for word in words] == list("012345") and [word["tabindex"] for word in words].count("0") == 1
    assert re.sub(r"<[^>]*>", "", re.search(r'<p class="caption".*?</p>', page)[0]) == html.escape(row["caption"])
    assert "Point at a word" in page and "Point at a word" not in write_page(tmp_path, [row])


@pytest.mark.parametrize("change", [lambda words: words[1].update(text="cat"), lambda words: words.pop(1)])
def test_maps_of_other_words_are_left_out(tmp_path, change):
    (row,) = make_rows(tmp_path / "images", [1.0])
    row = with_maps(row)
    change(row["attention"]["words"])
    assert "data-maps" not in write_page(tmp_path, [row])


def test_only_the_rows_shown_need_maps(tmp_path):
    rows = make_rows(tmp_path / "images", [i / 10 for i in range(12)])
    shown = shown_rows(rows, 5)
    assert len(shown) == 5 and all(any(row is one for one in rows) for _, row in shown)
    page = write_page(tmp_path, rows, max_images=5)
    assert {row["file_name"] for _, row in shown} == {a["data-name"] for t, a in Elements(page).found if t == "article"}


def test_the_part_an_encoder_sees_is_the_middle_of_what_it_crops(tmp_path):
    Image.new("RGB", (300, 200)).save(tmp_path / "wide.png")
    whole = {"crop": False, "resize": 64, "size": 64}
    assert seen_part(tmp_path / "wide.png", whole) == [0, 0, 1, 1]
    cut = {"crop": True, "resize": 224, "size": 224}
    assert seen_part(tmp_path / "wide.png", cut) == pytest.approx([1 / 6, 0, 5 / 6, 1])
    smaller = seen_part(tmp_path / "wide.png", cut | {"resize": 256})
    assert smaller == pytest.approx([1 / 6 + 1 / 24, 1 / 16, 5 / 6 - 1 / 24, 15 / 16])
