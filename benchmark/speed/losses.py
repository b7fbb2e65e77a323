"""What each distillation loss costs: a distillation step with it beside one with plain kl.

    python benchmark/speed/losses.py [--crop 473] [--batch 2] [--classes 21] [--repeats 5] [--json FILE]
                                     [--recipes kl,fitnet,...]

A step for each file of config/camvid/distill, on the networks of train_50_18.py, measured as in
step.py.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.speed import measure, step, step_variants
from util.run import errors_in_one_line


def main() -> None:
    parser = measure.parser(__doc__, crop=473, batch=2, classes=21, repeats=5)
    recipes = ",".join(step_variants.RECIPES)
    parser.add_argument("--recipes", default=recipes, help="default: all of config/camvid/distill")
    options = parser.parse_args()
    with errors_in_one_line(), tempfile.TemporaryDirectory() as folder:
        names = ["kl", *options.recipes.split(",")]
        measure.report(options, step.compare("distillation", names, options, Path(folder)))


if __name__ == "__main__":
    main()
