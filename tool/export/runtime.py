"""Making, running and quantising ONNX networks."""

import contextlib
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.pspnet import Output, PSPNet
from tool.export.graph import Exportable
from util import distributed
from util.config import Config, Data
from util.data.batch import Normalize
from util.data.decode import read_image
from util.data.lists import Pair
from util.errors import UserError
from util.evaluate import predict
from util.evaluate.protocol import protocol_for_validation, resize

EXAMPLE_SHAPE = (2, 3, 97, 121)  # any shape will do: batch, height and width are symbolic


def require_onnx() -> None:
    """Raise UserError unless the packages for export are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install -r requirements-export.txt") from None


@contextlib.contextmanager
def errors_only(logger: str | None) -> Iterator[None]:
    """Hide a library's log messages below ERROR; the level is restored, also after an exception."""
    chosen = logging.getLogger(logger)
    level = chosen.level
    chosen.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chosen.setLevel(level)


def to_onnx(net: Exportable, metadata: dict[str, str]) -> bytes:
    """One graph for any batch and image size, with `metadata` in the file."""
    import onnx

    dynamic = torch.export.Dim.DYNAMIC
    with errors_only("torch.onnx"), warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(
            net,
            (torch.zeros(EXAMPLE_SHAPE),),
            input_names=["image"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes={"image": {0: dynamic, 2: dynamic, 3: dynamic}},
            verbose=False,
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


class ExportedNet(nn.Module):
    """An ONNX network with PSPNet's interface, so that the testing code can run it, on the CPU.

    content: the ONNX file's bytes. normalize: the graph normalises by itself; the normalised images
    that the testing code provides are then converted back to RGB first.
    """

    def __init__(self, content: bytes, normalize: bool, data: Data):
        super().__init__()
        import onnxruntime

        self.normalize = normalize
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def logits(self, image: Tensor) -> Tensor:
        """What the graph takes, (N, 3, H, W) on the CPU -> (N, classes, H, W)."""
        return torch.from_numpy(self.session.run(None, {"image": image.numpy()})[0])

    def forward(self, image: Tensor) -> Output:
        device, image = image.device, image.cpu()
        if self.normalize:
            image = image * self.std + self.mean
        return Output(self.logits(image.contiguous()).to(device), None, {})


def quantize(content: bytes, images: Iterator[np.ndarray]) -> bytes:
    """The network with int8 convolutions: weights scaled per channel, activations per tensor.

    images: (1, 3, H, W) float32, on which the ranges of activations are measured.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self):
            image = next(images, None)
            return None if image is None else {"image": image}

    # The root logger's warning recommends preprocessing, which folded BatchNorm makes unnecessary.
    with errors_only(None), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        quantize_static(
            onnx.load_from_string(content),
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return path.read_bytes()


def evenly_spaced(pairs: list[Pair], count: int) -> list[Pair]:
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]


def graph_inputs(pairs: list[Pair], cfg: Config, normalize: bool) -> Iterator[np.ndarray]:
    """The images at scale 1 as the graph takes them, (1, 3, h, w) float32: RGB if it normalises."""
    normalized = Normalize(cfg.data, distributed.device())
    for pair in pairs:
        picture = read_image(pair.image, cfg.data.image_max).astype(np.float32)
        image = torch.from_numpy(resize(picture, 1.0, cfg.test.base_size))
        image = image[None].permute(0, 3, 1, 2) if normalize else normalized(image[None]).cpu()
        yield image.contiguous().numpy()


def agreement(net: nn.Module, exported: ExportedNet, pairs: list[Pair], cfg: Config, base_size: int) -> float:
    """The share of pixels with equal labels: whole images with that longer side, float32."""
    protocol = protocol_for_validation(cfg)._replace(base_size=base_size)
    equal = total = 0
    both = [
        predict.predictions(predict.Predictor(each, cfg, protocol, torch.float32), pairs, range(len(pairs)))
        for each in (net, exported)
    ]
    for (_, expected, _), (_, labels, _) in zip(*both, strict=True):
        equal, total = equal + int((labels == expected).sum()), total + labels.numel()
    return equal / total


def pytorch_logits(net: PSPNet, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """The same function as the exported graph's, computed by PyTorch on the CPU."""
    net.freeze()

    def call(image: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = net(image.contiguous(memory_format=torch.channels_last)).logits
        return F.interpolate(logits.float(), image.shape[2:], mode="bilinear", align_corners=True)

    return call


def latencies(nets: dict[str, Callable[[Tensor], Tensor]], image: Tensor, repeats: int = 7) -> dict[str, float]:
    """Median milliseconds of each network for `image`, timed alternately after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in nets}
    for repeat in range(repeats + 1):
        for name, net in nets.items():
            start = time.perf_counter()
            with torch.inference_mode():
                net(image)
            if repeat:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def metadata(cfg: Config, names: list[str], normalize: bool) -> dict[str, str]:
    """What a user of the file has to know."""
    values = "RGB 0 .. 255" if normalize else f"(RGB - {cfg.data.mean}) / {cfg.data.std}"
    return {
        "input": f"image: float32, batch x 3 x height x width, {values}",
        "output": "logits: float32, batch x classes x height x width; the label is the largest",
        "classes": json.dumps(names),
        "checkpoint": cfg.test.model_path,
    }
