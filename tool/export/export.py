"""Export a network, without its auxiliary head, for any input size, and hold it against PyTorch on real images.

    python tool/export/export.py --config FILE --to onnx|torchscript|state_dict [--out FILE] [SECTION.key VALUE ...]

TEST.model_path names the checkpoint, TEST.test_list the images. The file takes pictures (N, 3, H, W), normalised, or
with --normalize as RGB values 0 .. 255, and gives logits of the same size. It is written only if its labels equal
PyTorch's on 99.99 % of the pixels at each of three sizes. --int8 adds a quantised ONNX file and measures its mIoU.
What was measured is printed, and written beside the file as JSON. state_dict writes a checkpoint of the plain weights.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from model import pspnet  # noqa: E402
from tool.export import runtime  # noqa: E402
from tool.export.graph import Exportable  # noqa: E402
from util import (  # noqa: E402
    config,
    distributed,
    network,  # noqa: E402
    run,
)
from util.data.lists import Pair, read_list, read_names, scored_list  # noqa: E402
from util.errors import UserError  # noqa: E402
from util.evaluate import predict  # noqa: E402
from util.evaluate.metric import Scores, confusion_matrix  # noqa: E402
from util.files import atomic_write  # noqa: E402

AGREEMENT = 0.9999  # of the labels, at each size
SUFFIX = {"onnx": ".onnx", "torchscript": ".pt", "state_dict": ".pth"}


def load(cfg: config.Config) -> pspnet.PSPNet:
    return network.load(cfg.test.model_path, cfg.train.layers, cfg.data.classes, aux=False).eval()


def write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path} (--out): {error.strerror}") from None


def sizes(base_size: int) -> list[int]:
    """Three longer sides: TEST.base_size, and a smaller and a larger one that 8 does not divide."""
    return [base_size, 2 * base_size // 3 // 8 * 8 + 5, 5 * base_size // 4 // 8 * 8 + 3]


def check(net: torch.nn.Module, copy: runtime.Exported, pairs: list[Pair], cfg: config.Config) -> list[dict[str, Any]]:
    """Agreement at each size. Raises UserError where it is too low."""
    rows = []
    for size in sizes(cfg.test.base_size):
        share = runtime.agreement(net, copy, pairs, cfg, size)
        print(
            f"longer side {size}: {100 * share:.4f} % of the labels equal PyTorch's on {len(pairs)} images", flush=True
        )
        rows.append({"longer_side": size, "images": len(pairs), "equal_labels": share})
        if share < AGREEMENT:
            raise UserError(f"the exported network differs from {cfg.test.model_path} at size {size}; nothing written")
    return rows


def mean_iou(net: torch.nn.Module, pairs: list[Pair], cfg: config.Config) -> float:
    """Over the test list, whole images without flip."""
    matrix = torch.zeros(cfg.data.classes, cfg.data.classes, dtype=torch.int64)
    protocol = predict.validation_protocol(cfg)
    for _, prediction, label in predict.predictions(
        net, pairs, range(len(pairs)), cfg, protocol, torch.float32, 0, "score"
    ):
        matrix += confusion_matrix(prediction.cpu(), label, cfg.data.classes)
    return Scores.of(matrix).mIoU


def int8(content: bytes, copy: runtime.Exported, pairs: list[Pair], cfg: config.Config, images: int, path: Path):
    """Quantise with training images, score both on the test list, write it -> (network, measurements)."""
    train = read_list(cfg.data.train_list, "DATA.train_list", cfg.data.data_root)
    calibration = runtime.pictures(runtime.spread(train, images), cfg, not copy.normalize)
    quantized = runtime.quantize(content, calibration)
    quantised = runtime.Exported(quantized, "onnx", copy.normalize, cfg.data)
    before, after = (mean_iou(net, pairs, cfg) for net in (copy, quantised))
    write(path, quantized)
    change = f"{100 * before:.2f} -> {100 * after:.2f} % ({100 * (after - before):+.2f})"
    print(f"int8, calibrated with {min(images, len(train))} training images: mIoU {change} on {len(pairs)} images")
    print(f"{len(quantized) / 2**20:.1f} MiB written to {path}")
    return quantised, {"file": str(path), "bytes": len(quantized), "mIoU_float32": before, "mIoU": after}


def export(cfg: config.Config, arguments: argparse.Namespace) -> None:
    kind, names = arguments.to, read_names(cfg.data)
    path = arguments.out or Path(cfg.test.model_path).with_suffix(SUFFIX[kind])
    path = path.with_stem(f"{path.stem}_student") if path == Path(cfg.test.model_path) else path
    if kind == "onnx":
        runtime.require_onnx()
    net, notes = load(cfg), runtime.metadata(cfg, names, arguments.normalize)
    if kind == "state_dict":
        buffer = io.BytesIO()
        torch.save({"state_dict": net.state_dict(), "layers": net.layers, "stem": net.stem, "classes": names}, buffer)
        write(path, buffer.getvalue())
        print(f"{len(buffer.getvalue()) / 2**20:.1f} MiB of float32 weights written to {path}")
        return
    pairs = scored_list(cfg.test.test_list, "TEST.test_list", cfg.data, labelled=cfg.test.split != "test")
    if arguments.int8 and cfg.test.split == "test":
        raise UserError("--int8 measures mIoU, but TEST.split test has no labels")
    make = runtime.to_onnx if kind == "onnx" else runtime.to_torchscript
    content = make(Exportable(load(cfg), cfg.data, arguments.normalize), notes)
    copy = runtime.Exported(content, kind, arguments.normalize, cfg.data)
    torch.backends.cudnn.allow_tf32 = False  # the labels are to be float32's on a GPU, too
    rows = check(net.to(distributed.device()), copy, runtime.spread(pairs, arguments.images), cfg)
    write(path, content)
    print(f"{len(content) / 2**20:.1f} MiB written to {path}")
    result = {**notes, "file": str(path), "bytes": len(content), "agreement": rows}
    contenders = {"PyTorch": runtime.plain(load(cfg)), kind: copy}
    if distributed.device().type == "cpu" and distributed.precision("auto") == torch.bfloat16:
        contenders["PyTorch bfloat16"] = runtime.plain(load(cfg), torch.bfloat16)
    if arguments.int8:
        small, result["int8"] = int8(content, copy, pairs, cfg, arguments.calibrate, path.with_suffix(".int8.onnx"))
        contenders["int8"] = small
    image = torch.from_numpy(next(runtime.pictures(pairs, cfg, True)))
    result["ms"] = runtime.latencies(contenders, image)
    result |= {"threads": torch.get_num_threads(), "image": list(image.shape)}
    times = ", ".join(f"{name} {value:.1f}" for name, value in result["ms"].items())
    print(f"ms for one {image.shape[3]}x{image.shape[2]} image with {result['threads']} CPU thread(s): {times}")
    write(path.with_name(f"{path.name}.json"), (json.dumps(result, indent=1) + "\n").encode())


def main() -> None:
    parser = run.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", default="config/voc2012/voc2012_pspnet50_18.yaml", help="default: %(default)s")
    parser.add_argument("--to", choices=list(SUFFIX), required=True)
    parser.add_argument("--out", type=Path, help="the file (default: beside the checkpoint)")
    parser.add_argument("--normalize", action="store_true", help="the graph takes RGB 0 .. 255 and normalises it")
    parser.add_argument("--int8", action="store_true", help="with --to onnx: quantise, too, and measure its mIoU")
    parser.add_argument("--images", type=int, default=8, help="to compare with PyTorch on (default: %(default)s)")
    parser.add_argument("--calibrate", type=int, default=64, help="images for --int8 (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.key VALUE")
    with run.errors_in_one_line():
        arguments = parser.parse_intermixed_args()
        if arguments.int8 and arguments.to != "onnx":
            raise UserError("--int8 goes with --to onnx")
        if min(arguments.images, arguments.calibrate) < 1:
            raise UserError("--images and --calibrate must be 1 or more")
        export(config.load(arguments.config, arguments.overrides), arguments)


if __name__ == "__main__":
    main()
