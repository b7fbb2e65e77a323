"""What a teacher from elsewhere costs: a distillation step with it beside one with a PSPNet-50.

    python benchmark/speed/teachers.py [--crop 473] [--batch 2] [--repeats 5] [--json FILE]
                                       [--teachers segformer_b0,fcn_resnet50,...]

The step is that of train_50_18.py with kl alone. The networks have random weights, VOC's classes, and the published
sizes of network and input (ADE20K's 512 pixels; torchvision's 520). Measured as in step.py: the ways alternate in one
process, peak memory is that of a fresh one.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision import models

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.speed import measure, step_variants
from util.run import errors_in_one_line

NAMES = models.get_model_weights("fcn_resnet50").DEFAULT.meta["categories"]
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SQUARE, SHORTER = {"height": 512, "width": 512}, {"shortest_edge": 512, "longest_edge": 2048}
B2 = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768}


def torchvision(name: str, folder: Path) -> str:
    net = models.get_model(name, weights=None, weights_backbone=None, num_classes=len(NAMES))
    torch.save(net.state_dict(), folder / f"{name}.pth")
    return f"torchvision:{name}@{folder / name}.pth"


def transformers(network: str, processor: str, size: dict[str, int], config: Callable) -> Callable[[str, Path], str]:
    """config(the package, id2label=...) -> the network's config."""

    def make(name: str, folder: Path) -> str:
        import transformers as package

        package.utils.logging.disable_progress_bar()
        getattr(package, network)(config(package, id2label=dict(enumerate(NAMES)))).save_pretrained(folder / name)
        getattr(package, processor)(size=size).save_pretrained(folder / name)
        return f"hf:{folder / name}"

    return make


def _segformer(**sizes: object) -> Callable[[str, Path], str]:
    return transformers(
        "SegformerForSemanticSegmentation",
        "SegformerImageProcessor",
        SQUARE,
        lambda package, **names: package.SegformerConfig(**sizes, **names),
    )


TEACHERS: dict[str, Callable[[str, Path], str]] = {
    "lraspp_mobilenet_v3_large": torchvision,
    "fcn_resnet50": torchvision,
    "deeplabv3_resnet50": torchvision,
    "segformer_b0": _segformer(),
    "segformer_b2": _segformer(**B2),
    "upernet_convnext_tiny": transformers(
        "UperNetForSemanticSegmentation",
        "SegformerImageProcessor",
        SQUARE,
        lambda package, **names: package.UperNetConfig(
            backbone_config=package.ConvNextConfig(
                hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], out_features=STAGES
            ),
            auxiliary_in_channels=384,
            **names,
        ),
    ),
    "mask2former_swin_tiny": transformers(
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerImageProcessor",
        SHORTER,
        lambda package, **names: package.Mask2FormerConfig(
            backbone_config=package.SwinConfig(out_features=STAGES), **names
        ),
    ),
}


def main() -> None:
    parser = measure.parser(__doc__, crop=473, batch=2, classes=len(NAMES), repeats=5)
    parser.add_argument("--teachers", default=",".join(TEACHERS), help="default: %(default)s")
    parser.add_argument("--only", metavar="TEACHER", help="two steps with one, and its peak MiB")
    options = parser.parse_args()
    with errors_in_one_line(), tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def step(name: str) -> step_variants.Step:
            keys = {"DISTILL.weights.aux_mse": 0}
            if name != "pspnet50":
                keys["DISTILL.teacher_path"] = TEACHERS[name](name, folder)
            return step_variants.Step("distillation", options, folder, keys)

        if options.only:
            work = step(options.only)
            work(), work()
            print(json.dumps(measure.peak()))
            return
        ways = {name: step(name) for name in ("pspnet50", *options.teachers.split(","))}
        rows = measure.summary(measure.time_alternately(ways, options.repeats), "pspnet50")
        ways.clear()
        for name, row in rows.items():
            row["peak_MiB"] = measure.peak_of(__file__, options, "--only", name)
        measure.report(options, {"ways": rows})


if __name__ == "__main__":
    main()
