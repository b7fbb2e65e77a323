"""timm's models under a PSPNet: their maps stand for layer1 to layer4. timm is imported only when one is made."""

import contextlib
import difflib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.upsample import linear_weights

STRIDES = (4, 8, 8, 8)
MARGIN = 4  # pixels above and left of a padded image: the centre of an 8x8 patch then lies on a point of the grid


class TimmBackbone(nn.Module):
    """image (N, 3, H, W) -> four maps (N, channels[i], ceil(H / s), ceil(W / s)), s = STRIDES[i].

    A convolutional network gives its last four stages, dilated to output stride 8 where timm can; a vision transformer
    four blocks at equal distances, after its last LayerNorm, as DINOv2 is used; Swin its four stages. Maps of other
    strides (`reductions`) are interpolated at the grid's points. A model that cuts the image into patches gets it
    padded with zeros, the mean colour, to whole patches.

    name: timm/NAME of one of timm's models, randomly initialised. mean, std: those of its published weights, on pixels
    of 0 to 255. Raises ModuleNotFoundError without timm, ValueError for a name that timm does not know and for a
    model that does not give four maps of images of any size.
    """

    def __init__(self, name: str):
        super().__init__()
        self.net, self.padded = _create(_bare(name)).eval(), False
        self.reductions, self.channels = (values[-4:] for values in _stages(self.net))
        self.mean, self.std = ([255 * value for value in self.net.pretrained_cfg[key]] for key in ("mean", "std"))
        # Where every map has a value at each of the image's points 0, s, 2s ..., nothing has been cut into patches.
        if len(self.channels) == len(STRIDES):
            self.padded = self._grids(self.net) != [_ceil_div(65, reduction) for reduction in self.reductions]
        if len(self.channels) < len(STRIDES) or self._grids(self) != [_ceil_div(65, stride) for stride in STRIDES]:
            raise ValueError(f"{name} does not give four maps of images of any size; take another model")
        self.train()

    @staticmethod
    @torch.no_grad()
    def _grids(module: nn.Module) -> list[int]:
        """The sides of the maps that `module` makes of a 65x65 image; none if it cannot."""
        with contextlib.suppress(RuntimeError, AssertionError):
            return [x.shape[2] for x in module(torch.zeros(1, 3, 65, 65))[-4:]]
        return []

    def forward(self, image: Tensor) -> list[Tensor]:
        size = image.shape[2:]
        if self.padded:
            patch = max(8, *self.reductions)
            bottom, right = (_ceil_div(side + MARGIN, patch) * patch - MARGIN - side for side in size)
            image = F.pad(image, (MARGIN, right, MARGIN, bottom))
        maps = self.net(image)[-4:]
        return [self._on_grid(x, size, *steps) for x, *steps in zip(maps, self.reductions, STRIDES, strict=True)]

    def _on_grid(self, x: Tensor, size: tuple[int, int], reduction: int, stride: int) -> Tensor:
        """A map's values at the image's points 0, stride, 2 * stride ... (to half a cell if it has that stride)."""
        first = (MARGIN - (reduction - 1) / 2) / reduction if self.padded else 0.0  # cells before the image's point 0
        grid = [_ceil_div(side, stride) for side in size]
        if reduction == stride:
            start = round(first)
            return x[:, :, start : start + grid[0], start : start + grid[1]]
        rows, columns = (
            linear_weights((torch.arange(n, device=x.device) * (stride / reduction) + first).clamp(0, cells - 1), cells)
            for n, cells in zip(grid, x.shape[2:], strict=True)
        )
        return rows.to(x.dtype) @ x @ columns.to(x.dtype).T


class _Blocks(nn.Module):
    """Four blocks, or stages, of a transformer: image -> maps (N, C, h, w)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.pretrained_cfg = model, model.pretrained_cfg
        self.indices = [len(model.feature_info) * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
        self.feature_info = [model.feature_info[index] for index in self.indices]
        model.prune_intermediate_layers(self.indices, prune_norm=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(
            image, self.indices, norm=True, output_fmt="NCHW", intermediates_only=True
        )


def _ceil_div(size: int, step: int) -> int:
    return (size + step - 1) // step  # of positive numbers: ONNX rounds -(-size // step) the other way


def _stages(net: nn.Module) -> tuple[list[int], list[int]]:
    """The strides and the channels of the maps."""
    info = net.feature_info if isinstance(net, _Blocks) else net.feature_info.get_dicts()
    return [stage["reduction"] for stage in info], [stage["num_chs"] for stage in info]


def _bare(name: str) -> str:
    return name.removeprefix("timm/")


def _create(name: str) -> nn.Module:
    import timm

    try:
        with contextlib.suppress(TypeError):  # of models that do not know this option
            return _Blocks(timm.create_model(name, dynamic_img_size=True))
        with contextlib.suppress(TypeError, AssertionError):  # or cannot dilate
            return timm.create_model(name, features_only=True, output_stride=8)
        return timm.create_model(name, features_only=True)
    except (RuntimeError, AttributeError, IndexError) as error:
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        hint = f"; did you mean timm/{near[0]}?" if near and near[0] != name else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"timm cannot make {name} a backbone ({reason}){hint}") from None


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """nn.SyncBatchNorm's of that name, for timm's BatchNorms, too, which have their activation in them."""
    if not any(isinstance(child, TimmBackbone) for child in module.modules()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    from timm.layers import convert_sync_batchnorm as convert

    return convert(module)


def published(name: str, weights: bool) -> dict[str, Tensor]:
    """The whole model's state dict, classifier included: as timm initialises it, or with the weights it downloads."""
    import timm

    return timm.create_model(_bare(name), pretrained=weights).state_dict()


def weights_source(name: str) -> str | None:
    """The address of the weights that `published` downloads; None if timm has none."""
    import timm

    cfg = timm.get_pretrained_cfg(_bare(name))
    return (
        f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/model.safetensors" if cfg.hf_hub_id else cfg.url or None
    )


def own_name(key: str) -> str:
    """A parameter's name, alike in timm's whole model and where it gives maps (stages_0 for stages.0)."""
    return key.removeprefix("model.").replace(".", "_")
