"""torchvision:NAME, a segmentation network of torchvision's, with its weights or those of a file."""

import torch
from torch import Tensor, nn
from torchvision import models

from model.fold import fold_batchnorm
from util import checkpoint, pretrained
from util.errors import UserError, suggest
from util.keys import Data
from util.teachers.foreign import Foreign, Input, Sampler, shorter_side


class _Scores(nn.Module):
    """The network's forward pass without its last step, which would enlarge the scores to the image's size."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.backbone, self.classifier = net.backbone, net.classifier
        self.all_features = isinstance(net, models.segmentation.LRASPP)

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone(image)
        return self.classifier(features if self.all_features else features["out"])


def load(name: str, file: str | None, data: Data, dtype: torch.dtype) -> tuple[Foreign, list[str]]:
    """The frozen network and its classes' names. file: of the weights, else torchvision's are downloaded."""
    known = models.list_models(module=models.segmentation)
    if name not in known:
        raise UserError(f"DISTILL.teacher_path: torchvision has no segmentation network {name}; {suggest(name, known)}")
    weights = models.get_model_weights(name).DEFAULT
    names, transforms = list(weights.meta["categories"]), weights.transforms()
    if file:
        state = checkpoint.tensors(checkpoint.read(file), file)
    else:
        state = pretrained.download(weights, f"torchvision's weights of {name}", f"name it: torchvision:{name}@FILE")
    state = {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}
    net = models.get_model(name, weights=None, weights_backbone=None, num_classes=len(names), aux_loss=None)
    where = file or f"torchvision's file of {name}"
    checkpoint.check_match(state, net.state_dict(), where, f"torchvision's {name} of {len(names)} classes")
    net.load_state_dict(state)
    fold_batchnorm(net.eval())
    mean, std = ([255 * value for value in values] for values in (transforms.mean, transforms.std))
    feed = Input(mean, std, shorter_side(transforms.resize_size[0]))
    return Foreign(_Scores(net), len(names), feed, _sampled, data, dtype), names


def _sampled(scores: Tensor, sampler: Sampler) -> Tensor:
    return sampler(scores)
