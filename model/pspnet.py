"""PSPNet (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017) over a dilated ResNet."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import backbone
from model.fold import fold_batchnorm

BINS = (1, 2, 3, 6)
# zoom_factor of each layer's grid: 2 is stride 4, 1 is stride 8
LAYER_ZOOM_FACTOR = {"layer1": 2} | dict.fromkeys(
    ("layer2", "layer3", "layer4", "ppm", "feature", "aux_feature", "aux", "logits"), 1
)


class Output(NamedTuple):
    """What every forward returns. Stride 8 means (N, ., ceil(H/8), ceil(W/8)) for an image (N, 3, H, W)."""

    logits: Tensor  # (N, classes, ...) at stride 8
    aux: Tensor | None  # (N, classes, ...) at stride 8; None when the network has no auxiliary head
    features: dict[str, Tensor]  # layer1 (stride 4), layer2 .. layer4, ppm, feature, aux_feature (stride 8)

    def layer(self, name: str) -> Tensor:
        """A layer by its name. `feature` and `aux_feature` are the inputs of the last 1x1 convolutions."""
        return {"logits": self.logits, "aux": self.aux}.get(name, self.features.get(name))

    def grid(self, name: str) -> tuple[int, int]:
        """Height and width that a layer of this name has for the same image, in any PSPNet."""
        return tuple((self.features["layer1"] if LAYER_ZOOM_FACTOR[name] == 2 else self.logits).shape[2:])


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
        if x.is_contiguous(memory_format=torch.channels_last):  # one bin alone has lost it, and all would with it
            pooled = [y.contiguous(memory_format=torch.channels_last) for y in pooled]
        return torch.cat([x, *pooled], 1)


def _head(channels: int, width: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
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

    known = None  # as a teacher, it has the student's classes (model/distill/classes.py)

    def __init__(self, layers: int, classes: int, stem: str = "plain", dropout: float = 0.1, aux: bool = True):
        super().__init__()
        self.layers, self.classes, self.stem = layers, classes, stem
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = backbone.stages(layers, stem)
        spec = backbone.RESNETS[layers]
        channels = 8 * spec.width * spec.block.expansion
        self.ppm = PPM(channels)
        self.cls = _head(2 * channels, 8 * spec.width, classes, dropout)
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
        widths = {f"layer{i}": spec.width * 2 ** (i - 1) * spec.block.expansion for i in (1, 2, 3, 4)}
        widths |= {"ppm": 2 * widths["layer4"], "feature": 8 * spec.width, "logits": self.classes}
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
        fold_batchnorm(self)
        return self.to(dtype=dtype, memory_format=torch.channels_last)
