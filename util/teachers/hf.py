"""hf:FOLDER or hf:NAME, a segmentation network of transformers, from a folder or from the hub."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from util import checkpoint
from util.errors import UserError, first_line, worker_death
from util.keys import Data
from util.teachers.foreign import Foreign, Input, Sampler, Size, shorter_side

# By a config's model_type; transformers has more under "universal segmentation", whose classes mean something else.
MASK_CLASSIFIERS = ("maskformer", "mask2former", "oneformer", "eomt", "eomt_dinov3")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
ONEFORMER_TASK = "the task is semantic"


class _Net(nn.Module):
    """pixels (N, 3, h, w) -> the network's output, with `more` inputs that are the same for every image."""

    def __init__(self, net: nn.Module, more: dict[str, Tensor]):
        super().__init__()
        self.net, self.names = net, list(more)
        for name, value in more.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: Tensor) -> Any:
        more = {name: getattr(self, name).expand(len(pixels), -1) for name in self.names}
        return self.net(pixel_values=pixels, **more)


class Description:
    """What config.json says, before the weights are read or downloaded.

    names: of its classes. raw: whether its scores are raw ones, else log-probabilities. Raises UserError for what is
    not there, and for no network for semantic segmentation.
    """

    def __init__(self, name: str):
        self.name, self.transformers = name, _transformers()
        folder = Path(name)
        for file, holds in (("config.json", "the network"), ("preprocessor_config.json", "its normalisation")):
            if folder.is_dir() and not (folder / file).is_file():
                raise UserError(
                    f"{name} (DISTILL.teacher_path) has no {file}, {holds}; save_pretrained writes both there"
                )
        if not folder.is_dir() and not HUB_NAME.fullmatch(name):
            raise UserError(f"DISTILL.teacher_path hf:{name}: there is no such folder, and no hub has a name like it")
        self.config = _read(self.transformers.AutoConfig.from_pretrained, name)
        self.network = _network(self.transformers, self.config, name)
        self.names = [self.config.id2label[index] for index in sorted(self.config.id2label)]
        self.raw = self.config.model_type not in MASK_CLASSIFIERS

    def load(self, data: Data, dtype: torch.dtype) -> Foreign:
        """The frozen network. Raises UserError for what is not whole."""
        name, config = self.name, self.config
        strict = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # both kinds of faults, named below
        net, found = _read(self.network.from_pretrained, name, dtype=torch.float32, **strict)
        if absent := sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}):
            raise UserError(f"{name} (DISTILL.teacher_path) lacks weights of its {self.network.__name__}: {absent[0]}")
        if bad := checkpoint.not_finite(net.state_dict()):
            raise UserError(f"{name} (DISTILL.teacher_path) holds values that are not finite, in {bad[0]}")
        more = {"task_inputs": _task(self.transformers, config, name)} if config.model_type == "oneformer" else {}
        feed = _feed(_read(self.transformers.AutoImageProcessor.from_pretrained, name), config)
        return Foreign(_Net(net, more), len(self.names), feed, _logits if self.raw else from_masks, data, dtype)


def _task(transformers: Any, config: Any, name: str) -> Tensor:
    """(1, length): OneFormer is told in words that it shall segment classes."""
    tokenizer = _read(transformers.AutoTokenizer.from_pretrained, name)
    if tokenizer.unk_token_id in tokenizer(ONEFORMER_TASK, add_special_tokens=False)["input_ids"]:
        raise UserError(f"{name} (DISTILL.teacher_path) has no tokenizer, which a OneFormer needs; save it there, too")
    length = config.task_seq_len
    text = tokenizer(ONEFORMER_TASK, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return text["input_ids"]


def _logits(output: Any, sampler: Sampler) -> Tensor:
    return sampler(output.logits)


def from_masks(output: Any, sampler: Sampler) -> Tensor:
    """A mask classifier's queries -> log-probabilities of its classes at each point.

    A class's score is the sum over queries of softmax(classes and "no object")[class] * sigmoid(mask), masks resized
    before the sigmoid: semantic inference of Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic
    Segmentation", NeurIPS 2021. The scores of a point are divided by their sum.
    """
    classes = output.class_queries_logits.float().softmax(2)[..., :-1]
    scores = torch.einsum("nqc,nqhw->nchw", classes, sampler(output.masks_queries_logits).sigmoid())
    tiny = torch.finfo(scores.dtype).tiny
    return (scores / scores.sum(1, keepdim=True).clamp(min=tiny)).clamp(min=tiny).log()


def _transformers() -> Any:
    try:
        import transformers
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise UserError(
            f"DISTILL.teacher_path hf: needs transformers and safetensors ({error}): "
            "pip install -r requirements-teachers.txt"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.set_verbosity_error()
    return transformers


def _read(read: Callable, name: str, **options: Any) -> Any:
    """read(name), never with code from the folder or the hub; whatever goes wrong in one line."""
    try:
        return read(name, trust_remote_code=False, **options)
    except Exception as error:  # a damaged file can raise anything
        if worker_death(error):
            raise
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is never run: take a network that transformers itself has"
        elif isinstance(error, OSError) and not Path(name).is_dir():
            reason = f"there is no such folder, and the hub does not answer: {reason:.160}; download it elsewhere with "
            reason += "save_pretrained of model and image processor, and name the folder"
        raise UserError(f"DISTILL.teacher_path hf:{name} cannot be read: {reason:.400}") from None


def _network(transformers: Any, config: Any, name: str) -> type[nn.Module]:
    """The class of the network in the folder. Raises UserError for another task than semantic segmentation."""
    auto = transformers.models.auto.modeling_auto
    known = dict(auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
    known |= {kind: auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES.get(kind) for kind in MASK_CLASSIFIERS}
    wanted = known.get(config.model_type)
    held = (config.architectures or [wanted or config.model_type])[0]
    if not wanted or held != wanted:
        instead = f"of {config.model_type}, {wanted} does" if wanted else "SegFormer, UPerNet, BEiT, Mask2Former ... do"
        raise UserError(f"DISTILL.teacher_path hf:{name} is a {held}, which does not segment classes; {instead}")
    return getattr(transformers, wanted)


def _feed(processor: Any, config: Any) -> Input:
    """What preprocessor_config.json says of the input."""

    def says(key: str) -> Any:
        return getattr(processor, key, None)

    factor = says("rescale_factor") if says("do_rescale") else 1.0
    mean, std = (processor.image_mean, processor.image_std) if says("do_normalize") else ([0.0] * 3, [1.0] * 3)
    mean, std = ([value / factor for value in values] for values in (mean, std))
    return Input(mean, std, _size(says, config), bool(says("do_flip_channel_order")))


def _size(says: Callable[[str], Any], config: Any) -> Callable[[Size], Size]:
    """Its pipeline's resizing, without cropping and padding: what it cuts to a size is resized to that."""
    multiple = says("size_divisor") or says("ensure_multiple_of") or 1
    wanted = says("crop_size") if says("do_center_crop") else says("size")
    if config.model_type.startswith("eomt"):  # learned positions: no other size is possible
        return lambda size: (config.image_size, config.image_size)
    if not says("do_resize") or not wanted:
        return lambda size: tuple(-(-side // multiple) * multiple for side in size)
    if wanted.height and wanted.width:
        return lambda size: (wanted.height, wanted.width)
    return shorter_side(wanted.shortest_edge, wanted.longest_edge, multiple)
