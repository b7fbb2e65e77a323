"""Published weights of backbones: TRAIN.pretrained, and teachers of features."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from model import timm_backbone
from model.backbone import RESNETS
from model.pspnet import PSPNet
from util import checkpoint
from util.errors import UserError, first_line

# Where a classification ResNet's stem lies in layer0; conv2 to bn3 exist in the deep stem only.
_STEM = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4", "conv3": "6", "bn3": "7"}

log = logging.getLogger("pretrained")


def load_pretrained(net: PSPNet, pretrained: str, key: str = "TRAIN.pretrained") -> None:
    """Fill the backbone of `net` by TRAIN.pretrained: imagenet (a download), none, or the path of a file.

    The file is a classification ResNet's or, for a backbone of timm, of timm's names; or a PSPNet's. What a classifier
    has beside the backbone is left out; every other key must match. key: the config's, for errors. Raises UserError for
    a file that does not fit.
    """
    if pretrained == "none":
        return
    if pretrained != "imagenet":
        state, source = checkpoint.tensors(checkpoint.read(pretrained), pretrained), pretrained
    elif isinstance(net.layers, str):
        state, source = timm_state(net.layers, key), f"the download for {net.layers}"
    else:
        if net.stem == "deep":
            raise UserError(
                "torchvision has no ImageNet weights for TRAIN.stem deep; set TRAIN.stem to plain, or "
                "TRAIN.pretrained to semseg's file for this depth (initmodel/resnet50_v2.pth) or to none"
            )
        state = download(RESNETS[net.layers].weights, "ImageNet weights", f"set {key} to a file of them")
        source = "torchvision's ImageNet weights"
    fill_backbone(net, state, source)


def fill_backbone(net: PSPNet, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state`, in any of the forms of load_pretrained, into the backbone of `net`; `source` names it in errors."""
    own = {name: value for name, value in net.state_dict().items() if name.startswith("layer")}
    timm = isinstance(net.layers, str)
    if any(name.startswith("layer0.net." if timm else "layer0.") for name in state):  # a PSPNet's file: its backbone
        state = {name: value for name, value in state.items() if name.startswith("layer")}
    elif timm:
        state = _from_timm(state, net.layers, own)
    else:
        state = _from_resnet(state)
    what = f"a backbone {net.layers}" if timm else f"a ResNet-{net.layers} with a {net.stem} stem"
    checkpoint.check_match(state, own, source, what)
    net.load_state_dict(state, strict=False)  # the heads' keys are not in it; check_match compared the others


def _from_resnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if head != "fc":
            renamed[f"layer0.{_STEM[head]}.{rest}" if head in _STEM else name] = value
    return renamed


def _from_timm(state: dict[str, Tensor], layers: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` by our names, without what only timm's whole model has."""
    names = {timm_backbone.own_name(name.removeprefix("layer0.net.")): name for name in own}
    whole = set(map(timm_backbone.own_name, timm_backbone.published(layers, weights=False)))
    found = {timm_backbone.own_name(name): (name, value) for name, value in state.items()}
    return {names.get(key, name): value for key, (name, value) in found.items() if key in names or key not in whole}


def download(weights: WeightsEnum, what: str, otherwise: str) -> dict[str, Tensor]:
    """One of torchvision's state dicts, downloaded once into torch's cache.

    otherwise: the way out beside placing its file there by hand.
    """
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(
            f"{what} could not be downloaded ({first_line(error)}); fetch {weights.url} elsewhere "
            f"and place it in {folder}, or {otherwise}"
        ) from None


def timm_state(layers: str, key: str) -> dict[str, Tensor]:
    """The state dict that timm downloads for timm/NAME, once into the cache of huggingface_hub."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of a minute's attempts
    try:
        return timm_backbone.published(layers, weights=True)
    except Exception as error:  # of timm, of huggingface_hub, of its HTTP client, of safetensors
        reason = first_line(error)
        if not (source := timm_backbone.weights_source(layers)):
            raise UserError(f"{layers}: timm has no weights for it; set {key} to a file of them, or to none") from None
        raise UserError(
            f"the weights of {layers} could not be downloaded ({reason:.200}); fetch {source} elsewhere and name that "
            f"file in {key}"
        ) from None


def warn_of_normalisation(net: PSPNet, mean: list[float], std: list[float]) -> None:
    """Say so when timm's weights were trained with another mean or std than DATA's."""
    then = net.layer0.mean, net.layer0.std
    if any(abs(a - b) > 1 for pair in zip(then, (mean, std), strict=True) for a, b in zip(*pair, strict=True)):
        log.warning(
            f"warning: the weights of {net.layers} are for DATA.mean {[round(v, 3) for v in then[0]]} and DATA.std "
            f"{[round(v, 3) for v in then[1]]}; set them so"
        )
