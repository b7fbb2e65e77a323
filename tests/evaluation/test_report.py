# ruff: noqa: F401, F811 - a fixture of another file
"""The report page in a real browser: it renders, sorts, filters, steps, and requests nothing."""

import browser
import numpy as np
import pytest
from conftest import CLASSES, python
from PIL import Image
from tested_runs import runs

FIXED, BROKEN, STRIPE, BOTH = [0, 114, 178], [213, 94, 0], [122, 51, 0], [154, 161, 171]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not browser.find(), reason=f"no browser: {', '.join(browser.NAMES)}"),
]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    folders = [runs / name for name in ("pspnet50", "pspnet18", "pspnet50_18")]
    result = python("tool/report/compare.py", *folders, "--out", out, "--repeats", "0")
    assert result.returncode == 0, result.stderr
    chromium = browser.Browser(out / "profile")
    yield chromium, f"file://{out}/report.html"
    chromium.close()


def column(chromium, table, number):
    return chromium.run(
        f"[...document.querySelectorAll('#{table} tbody tr')].map(r => r.cells[{number}].innerText.trim())"
    )


def shown(chromium):
    """The title of the image shown and its position in the list, once it is drawn."""
    chromium.wait("document.getElementById('scenes').ariaBusy === 'false'")
    assert chromium.run("document.querySelectorAll('#panels canvas').length") == 5  # truth, three runs, what changed
    return chromium.run("document.getElementById('scene-title').innerText.split(':')[0]"), chromium.run(
        "document.getElementById('position').innerText"
    )


def test_sorts_filters_and_steps(page):
    chromium, url = page
    chromium.open(url, 1280, 900)
    assert chromium.run("document.title").startswith("Report on")
    assert column(chromium, "runs", 0) == ["teacher", "student alone", "distilled"]
    chromium.click("#runs th button", 1)  # mIoU, the best first, then the other way
    assert column(chromium, "runs", 0) == ["teacher", "distilled", "student alone"]
    assert chromium.run("document.querySelectorAll('#runs th')[1].ariaSort") == "descending"
    chromium.click("#runs th button", 1)
    assert column(chromium, "runs", 0) == ["student alone", "distilled", "teacher"]
    chromium.click("#classes th button", 0)
    assert column(chromium, "classes", 0) == ["car", "land", "road", "sky"]

    assert shown(chromium)[1] == "1 of 3"
    chromium.run("document.activeElement.blur()")
    names = set()
    for place in ("1 of 3", "2 of 3", "3 of 3", "3 of 3"):
        name, position = shown(chromium)
        assert position == place
        names.add(name)
        chromium.key("ArrowRight")
    assert names == {"val0", "val1", "val2"}
    chromium.click("#previous")
    assert shown(chromium)[1] == "2 of 3"
    chromium.key("o")
    assert chromium.run("document.getElementById('order').value") == "gained"

    chromium.click("#class-legend button", 3)
    shown(chromium)
    assert chromium.run("document.getElementById('class').value") == "3"
    assert chromium.run("document.querySelectorAll('#class-legend button')[3].ariaPressed") == "true"


def test_changes_are_marked_where_the_maps_differ(page, dataset):
    """Columns 6 to 11 are fixed by distillation, 0 to 5 wrong in both, the rest unmarked; reversed: broken."""
    chromium, url = page
    chromium.open(url, 1280, 900)

    def expected(between: list[list[int]]) -> None:
        valid = np.asarray(Image.open(dataset / f"{shown(chromium)[0]}.png"))[0] < CLASSES
        row = "document.querySelector('#panels figure:last-child canvas').getContext('2d').getImageData"
        pixels = chromium.run(f"[...{row}(0, 0, {valid.size}, 1).data]")
        for x, mark in enumerate(pixels[4 * x : 4 * x + 3] for x in range(valid.size)):
            if not valid[x] or x >= 12:
                assert min(mark) >= 212 and len(set(mark)) == 1, (x, mark)
            else:
                assert mark in (between if x >= 6 else [BOTH]), (x, mark)

    expected([FIXED])
    for select, value in (("before", 2), ("after", 1)):
        chromium.run(
            f"(s => {{ s.value = '{value}'; s.onchange({{target: s}}); }})(document.getElementById('{select}'))"
        )
    chromium.wait("document.getElementById('scene-title').innerText.includes('distilled → student alone')")
    expected([BROKEN, STRIPE])


@pytest.mark.parametrize("width", [390, 1280])
def test_fits_phone_and_desktop_without_requests(page, width):
    """No request but for the file itself, no error, and only tables scroll sideways."""
    chromium, url = page
    chromium.requests.clear()
    chromium.open(url, width, 800)
    shown(chromium)
    assert chromium.run("document.scrollingElement.scrollWidth") <= width
    assert chromium.run("document.querySelectorAll('#curves path').length") == 6
    assert all(address.startswith(("file://", "data:")) for address in chromium.requests) and chromium.requests
    assert not chromium.errors
