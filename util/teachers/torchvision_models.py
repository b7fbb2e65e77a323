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


class Description:
    """What torchvision says of a network, before its weights are read or downloaded.

    file: of the weights, else torchvision's. names: of its classes. Raises UserError for a network that it lacks.
    """

    raw = True  # scores, not log-probabilities

    def __init__(self, name: str, file: str | None):
        known = models.list_models(module=models.segmentation)
        if name not in known:
            raise UserError(
                f"DISTILL.teacher_path: torchvision has no segmentation network {name}; {suggest(name, known)}"
            )
        self.name, self.file, self.weights = name, file, models.get_model_weights(name).DEFAULT
        self.names = list(self.weights.meta["categories"])

    def load(self, data: Data, dtype: torch.dtype) -> Foreign:
        """The frozen network. Raises UserError for a file that does not hold it, and for a download that fails."""
        name, count, transforms = self.name, len(self.names), self.weights.transforms()
        if self.file:
            state = checkpoint.tensors(checkpoint.read(self.file), self.file)
        else:
            otherwise = f"name it: torchvision:{name}@FILE"
            state = pretrained.download(self.weights, f"torchvision's weights of {name}", otherwise)
        state = {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}
        net = models.get_model(name, weights=None, weights_backbone=None, num_classes=count, aux_loss=None)
        where = self.file or f"torchvision's file of {name}"
        checkpoint.check_match(state, net.state_dict(), where, f"torchvision's {name} of {count} classes")
        net.load_state_dict(state)
        fold_batchnorm(net.eval())
        mean, std = ([255 * value for value in values] for values in (transforms.mean, transforms.std))
        feed = Input(mean, std, shorter_side(transforms.resize_size[0]))
        return Foreign(_Scores(net), count, feed, _sampled, data, dtype)


def _sampled(scores: Tensor, sampler: Sampler) -> Tensor:
    return sampler(scores)
