"""The page of results in a browser: sorted, filtered, pointed at, on a phone, in the dark."""

import pytest
from PIL import Image

from tests.browser import CHROMIUM, browser
from tests.unit.score.test_report import HOSTILE, make_history, make_rows, with_maps, write_page

# What is drawn over the first picture, as (share of the picture's width and height where it is brightest).
BRIGHTEST = """(() => {
  const canvas = document.querySelector("canvas");
  if (!canvas) return null;
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const reds = [...data].filter((value, i) => i % 4 === 0);
  const at = reds.indexOf(Math.max(...reds));
  return [at % canvas.width, Math.floor(at / canvas.width)];
})()"""
PLACE = """(() => {
  const box = document.querySelector("canvas").getBoundingClientRect();
  const own = document.querySelector(".picture").getBoundingClientRect();
  return [box.x - own.x, box.y - own.y, box.width, box.height, own.width, own.height].map(Math.round);
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found")
def test_the_page_works_in_a_browser(tmp_path):
    rows = make_rows(tmp_path / "images", [0.5, 2.0, 1.0, 0.1])
    rows[0]["caption"], rows[3]["caption"] = HOSTILE, "a cat a cat"
    rows[1] = with_maps(rows[1])
    rows[1]["attention"]["box"] = [0.25, 0, 0.75, 1]
    write_page(tmp_path, rows, title="calm", history=make_history())
    longest = sorted("0123", key=lambda number: -len(rows[int(number)]["caption"].split()))
    assert longest not in (list("3021"), list("1203"))  # no other order
    names = "[...document.querySelectorAll('.card:not([hidden])')].map(card => card.dataset.name)"
    words = ".card:first-child .word:nth-child({})"
    with browser(tmp_path / "profile") as page:
        page.size(1280, 900)
        page.open(tmp_path / "report.html", "#order=repeats&filter=CAT")
        assert page.run(names) == ["p3.png"] and page.run("document.title") == "calm"
        page.run("filter.value = 'rank'; filter.dispatchEvent(new Event('input'))")
        assert page.run(names) == []  # that word stands on every card, in no caption, reference or name
        page.run("filter.value = ''; filter.dispatchEvent(new Event('input'))")
        assert page.run(names) == ["p3.png", "p0.png", "p1.png", "p2.png"]
        page.run("order.value = 'best'; order.dispatchEvent(new Event('change'))")
        assert page.run(names) == ["p1.png", "p2.png", "p0.png", "p3.png"]
        assert "order=best" in page.run("location.hash")
        for order, expected in (("worst", "3021"), ("longest", longest)):
            page.run(f"order.value = '{order}'; order.dispatchEvent(new Event('change'))")
            assert page.run(names) == [f"p{number}.png" for number in expected]
        page.run("order.value = 'best'; order.dispatchEvent(new Event('change'))")
        # Pointing at a word, at the next one, away.
        page.mouse(words.format(2))
        assert page.run(BRIGHTEST) == [1, 0]
        x, y, width, height, whole, high = page.run(PLACE)
        assert abs(x - whole / 4) <= 1 and abs(width - whole / 2) <= 1 and abs(height - whole * 240 / 320) <= 1
        page.mouse(words.format(4))
        assert page.run(BRIGHTEST) == [0, 1]
        page.mouse(None)
        assert page.run(BRIGHTEST) is None
        # A tap keeps it, a second one takes it away; so does Escape.
        page.mouse(words.format(3), click=True)
        page.mouse(None)
        assert page.run(BRIGHTEST) == [2, 0]
        assert page.run("document.querySelectorAll('.word[aria-pressed=true]').length") == 1
        page.key("ArrowRight")
        assert page.run(BRIGHTEST) == [0, 1] and page.run("document.activeElement.dataset.n") == "3"
        page.key("Escape")
        page.mouse(words.format(3), click=True)
        page.mouse(words.format(3), click=True)
        page.run("document.activeElement.blur()")
        page.mouse(None)
        assert page.run(BRIGHTEST) is None
        for dark in (False, True):
            page.size(390, 844, dark)
            assert page.run("document.documentElement.scrollWidth") == 390  # nothing sticks out on a phone
            page.picture(tmp_path / f"{dark}.png")
        assert page.errors == []
        page.run("setTimeout(() => missing())")
        page.run("new Promise(done => setTimeout(done, 50))")
        assert len(page.errors) == 1  # so it would have been seen
    with Image.open(tmp_path / "False.png") as light, Image.open(tmp_path / "True.png") as dark:
        assert light.convert("L").getpixel((2, 2)) > 200 > 60 > dark.convert("L").getpixel((2, 2))
