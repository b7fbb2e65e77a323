# ruff: noqa: F401, F811 - a fixture of another file
"""tool/report/compare.py: its numbers, files and errors."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tested_runs import runs

from tool.report import bootstrap
from tool.report.runs import near_border

NAMES = ("pspnet50", "pspnet18", "pspnet50_18")


def folders(root):
    return [root / name for name in NAMES]


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the runs that a test may change."""
    return shutil.copytree(runs, tmp_path / "exp")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_report(runs, dataset, script, tmp_path):
    result = script("tool/report/compare.py", *folders(runs), "--out", tmp_path, "--repeats", "1")
    assert result.status == 0, result.err
    report = json.loads((tmp_path / "report.json").read_text())
    rows = report["runs"]
    assert [row["title"] for row in rows] == ["teacher", "student alone", "distilled"]
    for row, name in zip(rows, NAMES, strict=True):
        metrics = json.loads((runs / name / "result" / "metrics.json").read_text())
        assert row["mIoU"] == pytest.approx(metrics["mIoU"])
        assert row["classes"] == pytest.approx([c["iou"] for c in metrics["classes"]])
        low, high = row["interval"]
        assert low <= row["mIoU"] <= high and high > low
        assert row["ms"] > 0
    teacher, student, distilled = (row["mIoU"] for row in rows)
    assert rows[2]["gap_closed"] == pytest.approx((distilled - student) / (teacher - student))
    assert rows[0]["parameters"] > 2.5 * rows[1]["parameters"] and rows[0]["GFLOP"] > 2 * rows[1]["GFLOP"]
    labels = [np.asarray(Image.open(dataset / f"val{i}.png")) for i in range(3)]
    valid = sum((label < 4).sum() for label in labels)
    change = next(d for d in report["differences"] if (d["before"], d["after"]) == (1, 2))
    assert change["fixed"] == pytest.approx(sum((label[:, 6:12] < 4).sum() for label in labels) / valid)
    assert change["broken"] == 0 and change["mIoU"] == pytest.approx(distilled - student)
    markdown = (tmp_path / "report.md").read_text()
    assert markdown in result.out and f"{100 * distilled:.2f}" in markdown and "student alone → distilled" in markdown
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "") and "/* data */" not in page


def test_bootstrap_is_the_plain_one():
    """Against repeating images one by one; a class absent from a sample does not count there, one never seen is 0."""
    rng = np.random.default_rng(3)
    hit = rng.integers(0, 9, (2, 5, 3))
    pixels = np.stack([hit, hit + rng.integers(1, 5, hit.shape), hit + rng.integers(0, 5, hit.shape)], 2)
    pixels[:, 1:, :, 1] = 0
    pixels[:, :, :, 2] = 0
    drawn = bootstrap.resampled_iou(pixels, 200, seed=1)
    counts = np.random.default_rng(1).multinomial(5, np.full(5, 0.2), 200)
    for draw, weights in zip(drawn, counts, strict=True):
        chosen = pixels[:, np.repeat(np.arange(5), weights)].sum(1)
        union = chosen[:, 1] + chosen[:, 2] - chosen[:, 0]
        assert draw[:, 0] == pytest.approx(chosen[:, 0, 0] / union[:, 0])
        assert (
            np.isnan(draw[:, 1]).all() if not weights[0] else draw[:, 1] == pytest.approx(chosen[:, 0, 1] / union[:, 1])
        )
    assert (drawn[:, :, 2] == 0).all()
    low, high = bootstrap.interval(drawn[:, 0, 0])
    assert 0.93 <= ((drawn[:, 0, 0] >= low) & (drawn[:, 0, 0] <= high)).mean() <= 0.97


def test_blocks_are_drawn_whole():
    """Blocks of 4 of 10 images: each sample has 10 images; 9 and 0 are neighbours."""
    draws = bootstrap.draw(10, 500, block=4)
    assert draws.shape == (500, 10) and (draws.sum(1) == 10).all()
    assert draws.mean(0) == pytest.approx(1, abs=0.2)
    together = ((draws > 0) & (np.roll(draws, 1, 1) > 0)).mean()  # neighbours in one draw
    single = bootstrap.draw(10, 500)
    assert together > 1.2 * ((single > 0) & (np.roll(single, 1, 1) > 0)).mean()


def test_intervals_of_frames_of_a_video(copy, dataset, script):
    """Each image ten times in a row, as in a video that hardly moves: no more information than once."""

    def width(*options: str) -> float:
        result = script("tool/report/compare.py", *folders(copy), "--repeats", "0", "--out", copy, *options)
        assert result.status == 0, result.err
        low, high = json.loads((copy / "report.json").read_text())["runs"][1]["interval"]
        return high - low

    once = width()
    frames = [(f"val{i}", f"frame{i}_{number}") for i in range(3) for number in range(10)]
    for image, frame in frames:
        for suffix in ("jpg", "png"):
            shutil.copy(dataset / f"{image}.{suffix}", copy / f"{frame}.{suffix}")
        for maps in copy.glob("*/result/gray"):
            shutil.copy(maps / f"{image}.png", maps / f"{frame}.png")
    (copy / "frames.txt").write_text("".join(f"{copy}/{frame}.jpg {copy}/{frame}.png\n" for _, frame in frames))
    for metrics in copy.glob("*/result/metrics.json"):  # counts are ten times as large, scores the same
        protocol = json.loads(metrics.read_text())["protocol"]
        edit(metrics, images=30, protocol={**protocol, "list": str(copy / "frames.txt")})
    independent, blocks = width(), width("--block", "10")
    assert independent < 0.5 * once and 0.6 * once < blocks < 1.2 * once
    for metrics in copy.glob("*/result/metrics.json"):
        edit(metrics, data={**json.loads(metrics.read_text())["data"], "video_block": 10})
    assert width() == blocks


def test_near_border():
    label = np.zeros((40, 60), np.uint8)
    label[:, 30:] = 1
    near, width = near_border(label, 0.03)
    assert width == 2 and (np.flatnonzero(near.any(0)) == [28, 29, 30, 31]).all()


def test_the_same_run_twice_differs_by_nothing(copy, script):
    shutil.copytree(copy / "pspnet18", copy / "again")
    options = [copy / "pspnet18", copy / "again", "--repeats", "0", "--out", copy]
    assert script("tool/report/compare.py", *options).status == 0
    (change,) = json.loads((copy / "report.json").read_text())["differences"]
    assert change["interval"] == [0, 0] and change["fixed"] == change["broken"] == 0


def test_roles_can_be_named(copy, script):
    shutil.copytree(copy / "pspnet18", copy / "other")
    options = ["--teacher", copy / "other", "--repeats", "0", "--out", copy]
    assert script("tool/report/compare.py", copy / "pspnet18", copy / "other", *options).status == 0
    assert [row["title"] for row in json.loads((copy / "report.json").read_text())["runs"]] == ["teacher", "pspnet18"]


def test_what_is_missing_is_said(copy, script):
    metrics = copy / "pspnet50/result/metrics.json"
    edit(metrics, protocol={**json.loads(metrics.read_text())["protocol"], "checkpoint": "gone.pth"})
    (copy / "pspnet18/model/metrics.jsonl").unlink()
    assert script("tool/report/compare.py", *folders(copy), "--repeats", "0", "--out", copy).status == 0
    report = json.loads((copy / "report.json").read_text())
    assert report["runs"][0]["GFLOP"] is None
    assert any("teacher" in note for note in report["notes"]) and any(
        "student alone" in note for note in report["notes"]
    )


def test_older_metrics_with_a_key_of_data_that_no_longer_exists(copy, script):
    metrics = copy / "pspnet18/result/metrics.json"
    data = json.loads(metrics.read_text())["data"]
    del data["video_block"]
    edit(metrics, data={**data, "allow_outside": False})
    assert script("tool/report/compare.py", *folders(copy), "--repeats", "0", "--out", copy).status == 0


def test_a_folder_given_twice_counts_once(copy, script):
    twice = [copy / "pspnet18", copy / "pspnet50" / ".." / "pspnet18", copy / "pspnet50"]
    assert script("tool/report/compare.py", *twice, "--repeats", "0", "--out", copy).status == 0
    assert len(json.loads((copy / "report.json").read_text())["runs"]) == 2


def test_block_that_does_not_fit(copy, fails):
    assert "at least 4 images, not 3" in fails("tool/report/compare.py", *folders(copy), "--block", "2")
    assert "--block must be 1 or more" in fails("tool/report/compare.py", *folders(copy), "--block", "0")


def test_folder_without_metrics(tmp_path, fails):
    assert "result/metrics.json does not exist" in fails("tool/report/compare.py", tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": [{"name": n, "iou": 0, "accuracy": 0} for n in ("sky", "land", "road", "boat")]}, "boat"),
        ({"images": 2}, "images: 3 and 2"),
        ({"ignore_label": 254}, "ignore_label"),
        ({"data": None}, "not the DATA section"),
    ],
)
def test_runs_that_do_not_belong_together(copy, fails, changes, words):
    edit(copy / "pspnet18/result/metrics.json", **changes)
    assert words in fails("tool/report/compare.py", *folders(copy))


def test_broken_runs(copy, fails):
    metrics = copy / "pspnet18/result/metrics.json"
    whole = metrics.read_text()
    content = json.loads(whole)
    del content["data"]
    metrics.write_text(json.dumps(content))
    assert "older test" in fails("tool/report/compare.py", *folders(copy))
    metrics.write_text("{")
    assert "is not a JSON object" in fails("tool/report/compare.py", *folders(copy))
    metrics.write_text(whole)
    assert "is not one of the runs" in fails("tool/report/compare.py", *folders(copy), "--student", copy)
    shutil.copy(copy / "pspnet50/result/gray/val0.png", copy / "pspnet18/result/gray/val0.png")
    assert "not those its metrics.json scored" in fails("tool/report/compare.py", *folders(copy), "--repeats", "0")
    (copy / "pspnet18/result/gray/val0.png").unlink()
    assert "val0.png does not exist" in fails("tool/report/compare.py", *folders(copy), "--repeats", "0")
    shutil.copy(copy / "pspnet18/model/train_epoch_2.pth", copy / "pspnet50/model/train_epoch_2.pth")
    assert "does not hold a PSPNet-50" in fails("tool/report/compare.py", *folders(copy))


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_windows_of_another_size_are_named_where_there_are_windows(copy, script, mode):
    for name, side in zip(NAMES, (41, 33, 33), strict=True):
        path = copy / name / "result" / "metrics.json"
        protocol = json.loads(path.read_text())["protocol"]
        edit(path, protocol=protocol | {"mode": mode, "crop": [side, 33]})
    result = script("tool/report/compare.py", *folders(copy), "--out", copy, "--repeats", "0")
    assert result.status == 0, result.err
    text = (copy / "report.md").read_text()
    assert ("different protocols: crop differ" in text) == (mode == "slide")
    assert text.index("**3 images are too few") < text.index("| run")
