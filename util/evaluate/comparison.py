"""Teacher, student alone and distilled student side by side, from their metrics.json."""

import json
from pathlib import Path

from util import distributed
from util.config import Config
from util.errors import UserError

MUST_AGREE = ("list", "images", "mode", "scales", "flip", "base_size")  # a teacher's windows may be larger


def compare(cfg: Config) -> None:
    """Print teacher, student alone and distilled side by side, and a verdict."""
    t = cfg.test
    if not distributed.is_main() or cfg.check or t.compare is None or t.split == "test" or t.teacher:
        return
    files = {
        "teacher": t.compare.teacher,
        "student alone": t.compare.student,
        "distilled": str(Path(t.save_folder, "metrics.json")),
    }
    missing = [f"{name} ({path})" for name, path in files.items() if not Path(path).is_file()]
    if missing:
        print(f"no comparison yet, not tested: {', '.join(missing)}")
        return
    try:
        runs = {name: json.loads(Path(path).read_text()) for name, path in files.items()}
        rows = [[name, *(100 * m[key] for key in ("mIoU", "mAcc", "allAcc"))] for name, m in runs.items()]
        lists = [str(Path(m["protocol"]["list"]).resolve()) for m in runs.values()]
        protocols = [
            m["protocol"] | {"images": m["images"], "list": p} for m, p in zip(runs.values(), lists, strict=True)
        ]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"one of {', '.join(files.values())} holds no scores; test that network again") from None
    print(f"\n{'':14}  mIoU %  mAcc %   acc %")
    for name, *scores in rows:
        print(f"{name:14}  {scores[0]:6.2f}  {scores[1]:6.2f}  {scores[2]:6.2f}")
    for key in MUST_AGREE:
        if len({str(protocol.get(key)) for protocol in protocols}) > 1:
            print(f"Not comparable: {key} is {', '.join(str(protocol.get(key)) for protocol in protocols)}.")
            return
    print(verdict(*(m["mIoU"] for m in runs.values())))


def verdict(teacher: float, student: float, distilled: float) -> str:
    """Where the distilled student's mIoU lies, in one sentence."""
    if teacher <= student:
        return "The teacher is not above the student alone: there is nothing to distil here."
    if distilled < student:
        return "The distilled student lies below the student alone."
    share = f"{100 * (distilled - student) / (teacher - student):.0f} % of the gap closed"
    if distilled > teacher:
        return f"The distilled student lies above the teacher ({share})."
    return f"The distilled student lies between the student alone and the teacher ({share})."
