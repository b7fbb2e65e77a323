"""What each distillation loss costs: a distillation step with it beside one with plain kl, in one process.

    python benchmark/losses.py [--crop 473] [--batch 2] [--classes 21] [--repeats 5] [--json FILE]
                               [--recipes kl,fitnet,...]

One way for each file of config/camvid/distill, on the networks of train_50_18.py. Ways take turns; ratios are to kl.
Peak memory is that of a fresh process for each way.
"""

import contextlib
import functools
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import measure, steps  # noqa: E402
from util import config  # noqa: E402

RECIPES = {path.stem: path for path in sorted((steps.ROOT / "config/camvid/distill").glob("*.yaml"))}
BASE = "kl"


def step(name: str, size: Namespace, folder: Path) -> Callable[[], None]:
    """A step of the recipe `name` on the sizes of this benchmark."""
    distill = config.load(RECIPES[name]).distill
    hints = json.dumps([hint.model_dump(exclude_none=True) for hint in distill.hints])
    more = {"DISTILL.hints": hints, "DISTILL.standardise": distill.standardise}
    more |= {f"DISTILL.weights.{term}": weight for term, weight in distill.weights.model_dump().items()}
    return steps.script_step("distillation", "auto", size, folder, more)


def main() -> None:
    parser = measure.parser(__doc__, crop=473, batch=2, classes=21, repeats=5)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="default: all of config/camvid/distill")
    parser.add_argument("--only", metavar="RECIPE", help="two steps of one recipe, and its peak MiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.only:
            work = step(options.only, options, Path(folder))
            work(), work()
            print(json.dumps(measure.peak_here()))
            return
        make = functools.partial(step, size=options, folder=Path(folder))
        ways = {
            name: measure.Variant(make(name), contextlib.nullcontext)
            for name in dict.fromkeys([BASE, *options.recipes.split(",")])
        }
        rows = measure.summary(measure.turns(ways, options.repeats), BASE)
    sizes = [part for key in ("crop", "batch", "classes") for part in (f"--{key}", getattr(options, key))]
    for name, row in rows.items():
        row["peak_MiB"] = measure.in_process(__file__, *sizes, "--only", name)
    for name, row in rows.items():
        more = row["peak_MiB"] - rows[BASE]["peak_MiB"]
        print(f"{name:14}{row['seconds']:8.3f} s{row['ratio']:7.2f}x {BASE}{row['peak_MiB']:8} MiB ({more:+})")
    measure.report(options, {"ways": rows})


if __name__ == "__main__":
    measure.main(main)
