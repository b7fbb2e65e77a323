"""PSPNet (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017) over a dilated ResNet; building and loading."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import backbone, frozen
from model.conv import WideConv2d
from util import checkpoint, run
from util.config import Config
from util.errors import UserError

BINS = (1, 2, 3, 6)
ZOOM = {"layer1": 2} | dict.fromkeys(  # zoom_factor of each layer's grid: 2 is stride 4, 1 is stride 8
    ("layer2", "layer3", "layer4", "ppm", "feature", "aux_feature", "aux", "logits"), 1
)


class Output(NamedTuple):
    """What every forward returns. Stride 8 means (N, ., ceil(H/8), ceil(W/8)) for an image (N, 3, H, W)."""

    logits: Tensor  # (N, classes, ...) at stride 8
    aux: Tensor | None  # (N, classes, ...) at stride 8; None when the network has no auxiliary head
    features: dict[str, Tensor]  # layer1 (stride 4), layer2 .. layer4, ppm, feature, aux_feature (stride 8)

    def layer(self, name: str) -> Tensor:
        """A layer of ZOOM by its name. `feature` and `aux_feature` are what the last 1x1 convolutions read."""
        return {"logits": self.logits, "aux": self.aux}.get(name, self.features.get(name))

    def grid(self, name: str) -> tuple[int, int]:
        """Height and width that a layer of this name has for the same image, in any PSPNet."""
        return tuple((self.features["layer1"] if ZOOM[name] == 2 else self.logits).shape[2:])


class PPM(nn.Module):
    """Pyramid pooling: (N, C, h, w) -> (N, 2C, h, w), the input beside its means over 1, 2, 3 and 6 bins a side."""

    def __init__(self, channels: int):
        super().__init__()
        width = channels // len(BINS)
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for size in BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = [F.interpolate(f(x), x.shape[2:], mode="bilinear", align_corners=True) for f in self.features]
        return torch.cat([x, *pooled], 1)


def _head(channels: int, width: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        WideConv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, classes, 1),
    )


class PSPNet(nn.Module):
    """PSPNet with the parameter names of the semseg family.

    layers: ResNet depth; stem: plain (7x7) or deep (three 3x3); aux: whether to have the auxiliary head on
    layer3 (testing does without).
    """

    def __init__(self, layers: int, classes: int, stem: str = "plain", dropout: float = 0.1, aux: bool = True):
        super().__init__()
        self.layers, self.classes, self.stem = layers, classes, stem
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = backbone.stages(layers, stem)
        spec = backbone.RESNETS[layers]
        channels = 512 * spec.block.expansion
        self.ppm = PPM(channels)
        self.cls = _head(2 * channels, 512, classes, dropout)
        self.aux = _head(channels // 2, spec.aux_channels, classes, dropout) if aux else None

    def forward(self, image: Tensor) -> Output:
        """image: (N, 3, H, W), normalised, any H and W from 9 up (8n + 1 is where the grids fall exactly)."""
        features = {}
        x = self.layer0(image)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            features[name] = x = getattr(self, name)(x)
        features["ppm"] = self.ppm(x)
        features["feature"] = self.cls[:4](features["ppm"])
        logits = self.cls[4](features["feature"])
        if self.aux is None:
            return Output(logits, None, features)
        features["aux_feature"] = self.aux[:4](features["layer3"])
        return Output(logits, self.aux[4](features["aux_feature"]), features)

    def channels(self) -> dict[str, int]:
        """Channels of each layer that Output.layer gives; without an auxiliary head aux and aux_feature are absent."""
        spec = backbone.RESNETS[self.layers]
        widths = {f"layer{i}": 32 * 2**i * spec.block.expansion for i in (1, 2, 3, 4)}
        widths |= {"ppm": 2 * widths["layer4"], "feature": 512, "logits": self.classes}
        return widths if self.aux is None else widths | {"aux_feature": spec.aux_channels, "aux": self.classes}

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the backbone and of the heads: the latter are new and learn faster."""
        backbone_, heads = [], []
        for name, parameter in self.named_parameters():
            (backbone_ if name.startswith("layer") else heads).append(parameter)
        return backbone_, heads

    def freeze(self, dtype: torch.dtype = torch.float32) -> "PSPNet":
        """For inference only: eval mode, no gradients, BatchNorm folded into the convolutions, weights in `dtype`."""
        self.eval().requires_grad_(False)
        frozen.fuse(self)
        return self.to(dtype=dtype, memory_format=torch.channels_last)


def build(cfg: Config) -> PSPNet:
    """The network that TRAIN describes: all of TRAIN.weight in it, or TRAIN.pretrained in its backbone.

    A TRAIN.weight brings its own stem, recognised from its keys. TRAIN.pretrained is not asked for when a checkpoint
    will replace it (TRAIN.resume): machines without a network can go on.
    """
    train = cfg.train
    if train.weight:
        state = checkpoint.network_state(train.weight, "student")
        net = PSPNet(train.layers, cfg.data.classes, _stem_of(state), train.dropout)
        _fill(net, state, train.weight)
    else:
        net = PSPNet(train.layers, cfg.data.classes, train.stem, train.dropout)
        if not checkpoint.to_resume(train.resume, Path(train.save_path)):
            backbone.load_pretrained(net, train.pretrained, train.layers, train.stem)
    return net


def load(path: str, layers: int, classes: int, part: str = "student", aux: bool = True) -> PSPNet:
    """The network in a checkpoint; its stem is recognised from the keys.

    layers, classes: what the config says, and the file must hold. part: "student" or "teacher", for a file that
    holds both. aux: take the auxiliary head, if there is one. Raises UserError naming what differs.
    """
    state = checkpoint.network_state(path, part)
    net = PSPNet(layers, classes, _stem_of(state), aux=aux and "aux.4.weight" in state)
    _fill(net, state, path)
    return net


def _stem_of(state: dict[str, Tensor]) -> str:
    return "deep" if "layer0.3.weight" in state else "plain"


def _fill(net: PSPNet, state: dict[str, Tensor], path: str) -> None:
    """Load strictly; only an auxiliary head that `net` does not have is left out."""
    if net.aux is None:
        state = {key: value for key, value in state.items() if not key.startswith("aux.")}
    checkpoint.check_match(state, net.state_dict(), path, f"a PSPNet-{net.layers} of {net.classes} classes")
    net.load_state_dict(state)


def load_teacher(cfg: Config) -> PSPNet:
    """The frozen teacher of DISTILL, on the device and in DISTILL.precision (or else TRAIN.precision).

    Raises UserError, saying how to make one, when it is not there.
    """
    if cfg.distill is None:
        raise UserError("the config has no DISTILL section; see config/voc2012/voc2012_pspnet50_18.yaml")
    path = cfg.distill.teacher_path
    if not checkpoint.exists(path):
        raise UserError(
            f"teacher checkpoint {path} (DISTILL.teacher_path) does not exist; "
            "train one with train_50.py and this dataset's pspnet50 config"
        )
    teacher = load(path, cfg.distill.teacher_layers, cfg.data.classes, part="teacher")
    if teacher.aux is None and cfg.distill.weights.aux_mse > 0:
        raise UserError(f"{path}: the teacher has no auxiliary head; set DISTILL.weights.aux_mse to 0")
    return teacher.to(run.device()).freeze(run.precision(cfg.distill.precision or cfg.train.precision))
