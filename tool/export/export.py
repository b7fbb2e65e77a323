"""Export a network, without its auxiliary head, to ONNX and compare it with PyTorch on real images.

    python tool/export/export.py --config FILE --to onnx|state_dict [--out FILE] [SECTION.key VALUE ...]

TEST.model_path names the checkpoint, TEST.test_list the images. The ONNX file takes images
(N, 3, H, W), normalised, or with --normalize as RGB values 0 .. 255, and returns logits of the same
size. It is written only if its labels equal PyTorch's on 99.99 % of the pixels at each of three
sizes. --int8 adds a quantised file and measures its mIoU. The measurements are printed, and written
beside the file as JSON. state_dict writes a checkpoint that holds nothing but the weights.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from model.pspnet import PSPNet
from tool.export import runtime
from tool.export.graph import Exportable
from util import config, distributed, network, run
from util.data.lists import Pair, read_list, read_names, scored_list
from util.errors import UserError
from util.evaluate import predict
from util.evaluate.metric import Scores, confusion_matrix
from util.evaluate.outputs import check_outputs
from util.evaluate.protocol import protocol_for_validation
from util.files import atomic_write

MIN_AGREEMENT = 0.9999  # of the labels, at each size
SUFFIX = {"onnx": ".onnx", "state_dict": ".pth"}


def load(cfg: config.Config) -> PSPNet:
    return network.load(cfg.test.model_path, cfg.train.architecture, cfg.data.classes, aux=False, data=cfg.data).eval()


def write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path} (--out): {error.strerror}") from None
    print(f"written to {path} ({len(content) / 2**10:,.0f} KiB)")


def sizes(base_size: int) -> list[int]:
    """Three longer sides: TEST.base_size, and a smaller and a larger one that 8 does not divide."""
    return [base_size, 2 * base_size // 3 // 8 * 8 + 5, 5 * base_size // 4 // 8 * 8 + 3]


def check(net: PSPNet, exported: runtime.ExportedNet, pairs: list[Pair], cfg: config.Config) -> list[dict[str, Any]]:
    """Agreement at each size. Raises UserError where it is too low."""
    rows = []
    for size in sizes(cfg.test.base_size):
        share = runtime.agreement(net, exported, pairs, cfg, size)
        print(
            f"longer side {size}: {100 * share:.4f} % of the labels equal PyTorch's on {len(pairs)} images", flush=True
        )
        rows.append({"longer_side": size, "images": len(pairs), "equal_labels": share})
        if share < MIN_AGREEMENT:
            raise UserError(f"the exported network differs from {cfg.test.model_path} at size {size}; nothing written")
    return rows


def mean_iou(net: torch.nn.Module, pairs: list[Pair], cfg: config.Config) -> float:
    """Over the test list, whole images without flip, float32."""
    matrix = torch.zeros(cfg.data.classes, cfg.data.classes, dtype=torch.int64)
    protocol = protocol_for_validation(cfg)
    found = predict.predictions(
        predict.Predictor(net, cfg, protocol, torch.float32), pairs, range(len(pairs)), title="score"
    )
    for _, prediction, label in found:
        matrix += confusion_matrix(prediction.cpu(), label, cfg.data.classes)
    return Scores.of(matrix).mIoU


def export_state_dict(cfg: config.Config, path: Path) -> None:
    net, names, buffer = load(cfg), read_names(cfg.data), io.BytesIO()
    content = {"state_dict": net.state_dict(), "layers": net.layers, "stem": net.stem, "classes": names}
    torch.save({**content, "normalisation": {"mean": cfg.data.mean, "std": cfg.data.std}}, buffer)
    write(path, buffer.getvalue())


def export_onnx(cfg: config.Config, arguments: argparse.Namespace, path: Path) -> None:
    runtime.require_onnx()
    normalize, device = arguments.normalize, distributed.device()
    pairs = scored_list(cfg.test.test_list, "TEST.test_list", cfg.data, labelled=cfg.test.split != "test")
    labelled = bool(cfg.data.train_list)
    train = read_list(*cfg.data.epoch_list, cfg.data.data_root, labelled) if arguments.int8 else []
    metadata = runtime.metadata(cfg, read_names(cfg.data), normalize)
    content = runtime.to_onnx(Exportable(load(cfg), cfg.data, normalize), metadata)
    exported = runtime.ExportedNet(content, normalize, cfg.data)
    torch.backends.cudnn.allow_tf32 = False  # the labels must be float32's on a GPU, too
    rows = check(load(cfg).to(device), exported, runtime.evenly_spaced(pairs, arguments.images), cfg)
    write(path, content)
    result = {**metadata, "file": str(path), "bytes": len(content), "agreement": rows}
    contenders = {"PyTorch": runtime.pytorch_logits(load(cfg)), "onnx": exported.logits}
    if device.type == "cpu" and distributed.precision("auto") == torch.bfloat16:
        contenders["PyTorch bfloat16"] = runtime.pytorch_logits(load(cfg), torch.bfloat16)
    if arguments.int8:
        chosen = runtime.evenly_spaced(train, arguments.calibrate)
        content = runtime.quantize(content, runtime.graph_inputs(chosen, cfg, normalize))
        quantized = runtime.ExportedNet(content, normalize, cfg.data)
        before, after = (mean_iou(net, pairs, cfg) for net in (exported, quantized))
        change = f"{100 * before:.2f} -> {100 * after:.2f} % ({100 * (after - before):+.2f})"
        print(f"int8, calibrated with {len(chosen)} training images: mIoU {change} on {len(pairs)} images")
        file = path.with_suffix(".int8.onnx")
        write(file, content)
        result["int8"] = {"file": str(file), "bytes": len(content), "mIoU_float32": before, "mIoU": after}
        contenders["int8"] = quantized.logits
    image = torch.from_numpy(next(runtime.graph_inputs(pairs, cfg, normalize)))
    result["ms"] = runtime.latencies(contenders, image)
    result |= {"threads": torch.get_num_threads(), "image": list(image.shape)}
    times = ", ".join(f"{name} {value:.1f}" for name, value in result["ms"].items())
    print(f"ms for one {image.shape[3]}x{image.shape[2]} image with {result['threads']} CPU thread(s): {times}")
    write(path.with_name(f"{path.name}.json"), (json.dumps(result, indent=1) + "\n").encode())


def main() -> None:
    parser = run.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", default="config/voc2012/voc2012_pspnet50_18.yaml", help="default: %(default)s")
    parser.add_argument("--to", metavar="|".join(SUFFIX), required=True, help="the format")
    parser.add_argument("--out", type=Path, help="the file (default: beside the checkpoint)")
    parser.add_argument("--normalize", action="store_true", help="the graph takes RGB 0 .. 255 and normalises it")
    parser.add_argument("--int8", action="store_true", help="also quantise the ONNX file and measure its mIoU")
    parser.add_argument("--images", type=int, default=8, help="to compare with PyTorch on (default: %(default)s)")
    parser.add_argument("--calibrate", type=int, default=64, help="images for --int8 (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.key VALUE")
    with run.errors_in_one_line():
        arguments = parser.parse_intermixed_args()
        if arguments.to not in SUFFIX:
            raise UserError(f"--to takes onnx (which replaces TorchScript) or state_dict, not {arguments.to}")
        if arguments.to != "onnx" and (arguments.int8 or arguments.normalize):
            raise UserError("--int8 and --normalize need --to onnx")
        if min(arguments.images, arguments.calibrate) < 1:
            raise UserError("--images and --calibrate must be 1 or more")
        cfg = config.load(arguments.config, arguments.overrides)
        if cfg.test.teacher:
            raise UserError("TEST.teacher: only TEST.model_path can be exported; set TEST.teacher to False")
        if arguments.int8 and cfg.test.split == "test":
            raise UserError("--int8 measures mIoU, but TEST.split test has no labels; set it to val")
        checkpoint = Path(cfg.test.model_path)
        path = arguments.out or checkpoint.with_suffix(SUFFIX[arguments.to])
        if path == checkpoint:
            path = path.with_stem(f"{path.stem}_student")
        lists = [name for name in (cfg.data.train_list, cfg.data.val_list, cfg.test.test_list) if name]
        files = [path] if arguments.to != "onnx" else [path, path.with_suffix(".int8.onnx"), Path(f"{path}.json")]
        check_outputs(files, [checkpoint, arguments.config, cfg.data.names_path, cfg.data.colors_path, *lists])
        if arguments.to == "onnx":
            export_onnx(cfg, arguments, path)
        else:
            export_state_dict(cfg, path)


if __name__ == "__main__":
    main()
