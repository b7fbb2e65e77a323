"""PSPNet (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017) over a dilated ResNet or timm's models."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import backbone
from model.fold import fold_batchnorm
from model.timm_backbone import TimmBackbone

STAGES = ("layer1", "layer2", "layer3", "layer4")
BINS = (1, 2, 3, 6)
# zoom_factor of each layer's grid: 2 is stride 4, 1 is stride 8
LAYER_ZOOM_FACTOR = {"layer1": 2} | dict.fromkeys(
    ("layer2", "layer3", "layer4", "feature", "aux_feature", "aux", "logits"), 1
)

Normalisation = tuple[list[float], list[float]]  # mean and standard deviation of each channel


class Output(NamedTuple):
    """What every forward returns. Stride 8 means (N, ., ceil(H/8), ceil(W/8)) for an image (N, 3, H, W)."""

    logits: Tensor | None  # (N, classes, ...) at stride 8; None when the network is a backbone alone
    aux: Tensor | None  # (N, classes, ...) at stride 8; None when the network has no auxiliary head
    features: dict[str, Tensor]  # layer1 (stride 4), layer2 .. layer4, feature, aux_feature (stride 8)

    def layer(self, name: str) -> Tensor:
        """A layer by its name. `feature` and `aux_feature` are the inputs of the last 1x1 convolutions."""
        return {"logits": self.logits, "aux": self.aux}.get(name, self.features.get(name))

    def grid(self, name: str) -> tuple[int, int]:
        """Height and width that a layer of this name has for the same image, in any PSPNet."""
        return tuple((self.features["layer1"] if LAYER_ZOOM_FACTOR[name] == 2 else self.logits).shape[2:])


class PPM(nn.Module):
    """Pyramid pooling: (N, C, h, w) -> that map, and its means over 1, 2, 3 and 6 bins a side, (N, C/4, bins, bins)."""

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

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, *(branch(x) for branch in self.features)]


class PyramidConv(nn.Conv2d):
    """The 3x3 convolution of PPM's output, as if its maps were enlarged (bilinear, align_corners) and concatenated.

    Enlarging is linear, so the kernel can be applied before it, to 50 bins in place of h * w positions; what a bin then
    adds to each position depends on h and w alone. The result differs by rounding; half of the multiplications and the
    concatenated map are saved.
    """

    def forward(self, maps: list[Tensor]) -> Tensor:
        """maps: (N, C, h, w) and the means, (N, ., bins, bins) -> (N, out_channels, h, w)."""
        own, *kernels = self.weight.split([x.shape[1] for x in maps], 1)
        y = F.conv2d(maps[0], own, self.bias, padding=1)
        size, exact = y.shape[2:], torch.promote_types(y.dtype, torch.float32)
        shares, added = [], []
        for x, kernel in zip(maps[1:], kernels, strict=True):
            bins = x.shape[2]
            each = torch.eye(bins * bins, dtype=exact, device=y.device).view(1, -1, bins, bins)
            enlarged = F.interpolate(each, size, mode="bilinear", align_corners=True)
            shares.append(F.unfold(enlarged, 3, padding=1)[0])  # (bins * bins * 9, h * w)
            binwise = F.linear(x.flatten(2).transpose(1, 2), kernel.permute(0, 2, 3, 1).flatten(0, 2))
            added.append(binwise.unflatten(2, (-1, 9)).transpose(2, 3).flatten(1, 2))  # (N, bins * bins * 9, out)
        return y + (torch.cat(shares).t().to(y.dtype) @ torch.cat(added, 1)).transpose(1, 2).unflatten(2, size)


def _head(channels: int, width: int, classes: int, dropout: float, conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(
        conv(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, classes, 1),
    )


class PSPNet(nn.Module):
    """PSPNet with the parameter names of the semseg family.

    layers: ResNet depth, or timm/NAME; stem: of the ResNet, plain (7x7) or deep (three 3x3); aux: whether to have the
    auxiliary head on layer3 (testing does without). classes: None leaves all heads out, for a teacher of features.
    Raises what TimmBackbone does.
    """

    known = None  # as a teacher, it has the student's classes (model/distill/classes.py)

    def __init__(
        self, layers: int | str, classes: int | None, stem: str = "plain", dropout: float = 0.1, aux: bool = True
    ):
        super().__init__()
        self.layers, self.classes, self.stem = layers, classes, stem
        self.register_buffer("rescale", None, persistent=False)
        if isinstance(layers, str):
            self.layer0 = TimmBackbone(layers)
            self.layer1, self.layer2, self.layer3, self.layer4 = (nn.Identity() for _ in STAGES)  # places for hooks
            stages = self.layer0.channels
            width, aux_width = min(512, stages[3]), min(256, stages[2] // 2)  # as those of ResNets follow from theirs
        else:
            self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = backbone.stages(layers, stem)
            spec = backbone.RESNETS[layers]
            stages = [spec.width * 2**i * spec.block.expansion for i in range(4)]
            width, aux_width = 8 * spec.width, spec.aux_channels
        self.widths = dict(zip(STAGES, stages, strict=True))
        self.ppm = self.cls = self.aux = None
        if classes:
            self.ppm = PPM(stages[3])
            self.widths["feature"] = width
            self.cls = _head(stages[3] + len(BINS) * (stages[3] // len(BINS)), width, classes, dropout, PyramidConv)
        if classes and aux:
            self.widths["aux_feature"] = aux_width
            self.aux = _head(stages[2], aux_width, classes, dropout)

    def forward(self, image: Tensor) -> Output:
        """image: (N, 3, H, W), normalised, any H and W from 9 up (8n + 1 is where the grids fall exactly)."""
        features = {}
        if self.rescale is not None:
            image = image * self.rescale[0] + self.rescale[1]
        x = maps = self.layer0(image)
        for i, name in enumerate(STAGES):
            features[name] = x = getattr(self, name)(maps[i] if isinstance(maps, list) else x)
        if self.cls is None:
            return Output(None, None, features)
        features["feature"] = self.cls[:4](self.ppm(x))
        logits = self.cls[4](features["feature"])
        if self.aux is None:
            return Output(logits, None, features)
        features["aux_feature"] = self.aux[:4](features["layer3"])
        return Output(logits, self.aux[4](features["aux_feature"]), features)

    def expect(self, given: Normalisation, own: Normalisation) -> None:
        """From now on images come normalised by `given`; the weights are for `own`. Both are of pixels of 0 to 255."""
        (mean, std), (own_mean, own_std) = (torch.tensor(pair).view(2, 3, 1, 1) for pair in (given, own))
        self.rescale = torch.stack([std, mean - own_mean]) / own_std

    def channels(self) -> dict[str, int]:
        """Channels of each layer that Output.layer gives; those of heads that are absent are absent."""
        scores = {"logits": self.cls, "aux": self.aux}
        return self.widths | {name: self.classes for name, head in scores.items() if head is not None}

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
