"""Making, running and quantising exported networks."""

import contextlib
import io
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

EXAMPLE = (2, 3, 97, 121)  # any size does: the graph is traced for all


def require_onnx() -> None:
    """Raise UserError unless the extras are there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install -r requirements-export.txt") from None


@contextlib.contextmanager
def only_errors(logger: str | None) -> Iterator[None]:
    """Silence what a library's logger says beside errors."""
    chosen = logging.getLogger(logger)
    level = chosen.level
    chosen.setLevel(logging.ERROR)
    yield
    chosen.setLevel(level)


def to_onnx(net: Exportable, notes: dict[str, str]) -> bytes:
    """One graph for any batch and size; `notes` become the file's metadata."""
    import onnx

    free = torch.export.Dim.DYNAMIC
    with only_errors("torch.onnx"), warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(
            net,
            (torch.zeros(EXAMPLE),),
            input_names=["image"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes={"image": {0: free, 2: free, 3: free}},
            verbose=False,
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, notes)
    return model.SerializeToString()


def to_torchscript(net: Exportable, notes: dict[str, str]) -> bytes:
    """A traced and frozen module for any batch and size; `notes` lie in it as extra files."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module = torch.jit.freeze(torch.jit.trace(net, torch.zeros(EXAMPLE)).eval())
        buffer = io.BytesIO()
        torch.jit.save(module, buffer, _extra_files=notes)
    return buffer.getvalue()


class Exported(nn.Module):
    """An exported network in the place of a PSPNet: the testing loop takes it as it is.

    content: an ONNX or TorchScript file's bytes; it runs on the CPU. It is given what PSPNet is given, normalised
    pictures; where the graph normalises by itself they are turned back into RGB first.
    """

    def __init__(self, content: bytes, kind: str, normalize: bool, data: Data):
        super().__init__()
        self.normalize = normalize
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
        self.call = _onnx_call(content) if kind == "onnx" else _torchscript_call(content)

    def forward(self, image: Tensor) -> Output:
        device, image = image.device, image.cpu()
        if self.normalize:
            image = image * self.std + self.mean
        return Output(self.call(image.contiguous()).to(device), None, {})


def _onnx_call(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _torchscript_call(content: bytes) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()


def quantize(content: bytes, images: Iterator[np.ndarray]) -> bytes:
    """int8 convolutions, weights a channel at a time; activations' ranges come from `images` (1, 3, H, W) float32."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self):
            image = next(images, None)
            return None if image is None else {"image": image}

    # It advises, through the root logger, a preprocessing that folded BatchNorm makes needless.
    with only_errors(None), tempfile.TemporaryDirectory() as folder:
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


def spread(pairs: list[Pair], count: int) -> list[Pair]:
    """`count` of the pairs, evenly over the list."""
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]


def pictures(pairs: list[Pair], cfg: Config, normalized: bool) -> Iterator[np.ndarray]:
    """The pictures at scale 1, (1, 3, h, w) float32, as a graph takes them."""
    normalize = Normalize(cfg.data, distributed.device())
    for pair in pairs:
        image = torch.from_numpy(predict.resize(read_image(pair.image).astype(np.float32), 1.0, cfg.test.base_size))
        image = normalize(image[None]).cpu() if normalized else image[None].permute(0, 3, 1, 2)
        yield image.contiguous().numpy()


def agreement(net: nn.Module, exported: Exported, pairs: list[Pair], cfg: Config, base_size: int) -> float:
    """The share of pixels to which both networks give the same label; whole pictures of that longer side, float32."""
    protocol = predict.validation_protocol(cfg)._replace(base_size=base_size)
    same = total = 0
    both = [
        predict.predictions(each, pairs, range(len(pairs)), cfg, protocol, torch.float32) for each in (net, exported)
    ]
    for (_, ours, _), (_, theirs, _) in zip(*both, strict=True):
        same, total = same + int((ours == theirs).sum()), total + ours.numel()
    return same / total


def plain(net: PSPNet, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """What the exported graph does, by PyTorch on the CPU."""
    net.freeze()

    def call(image: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = net(image.contiguous(memory_format=torch.channels_last)).logits
        return F.interpolate(logits.float(), image.shape[2:], mode="bilinear", align_corners=True)

    return call


def latencies(nets: dict[str, Callable[[Tensor], object]], image: Tensor, repeats: int = 7) -> dict[str, float]:
    """Median milliseconds of each network for `image`, taking turns, after a first turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in nets}
    for turn in range(repeats + 1):
        for name, net in nets.items():
            start = time.perf_counter()
            with torch.inference_mode():
                net(image)
            if turn:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def metadata(cfg: Config, names: list[str], normalize: bool) -> dict[str, str]:
    """What whoever runs the file needs to know."""
    how = "RGB 0 .. 255" if normalize else f"(RGB - {cfg.data.mean}) / {cfg.data.std}"
    return {
        "input": f"image: float32, batch x 3 x height x width, {how}",
        "output": "logits: float32, batch x classes x height x width; the label is the largest",
        "classes": json.dumps(names),
        "checkpoint": cfg.test.model_path,
    }
