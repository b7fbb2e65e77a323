"""The keys of a config: names, types, defaults, limits. What each means stands beside it in the YAML files.

Sections and keys are those of the semseg family.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from util.keys.base import Backbone, Depth, Precision, Section, UserPath
from util.keys.distill import Distill, Hint, Schedule

__all__ = ["Config", "Data", "Distill", "Hint", "Schedule", "Test", "Train"]

Size = Annotated[int, Field(ge=9, le=32766)]  # pixels a side; OpenCV's warps end at 32767
Scale = Annotated[float, Field(ge=0.01, le=100)]
Probability = Annotated[float, Field(ge=0, le=1)]
_BYTE = r"(25[0-5]|2[0-4]\d|[01]?\d?\d)"
LabelSource = int | Annotated[str, Field(pattern=f"^(other|{_BYTE} {_BYTE} {_BYTE})$")]  # value, or colour


class Data(Section):
    data_root: UserPath
    train_list: UserPath | None = None  # empty: only DATA.unlabelled_list, and what a teacher says of it
    val_list: UserPath | None = None  # needed by evaluate, and by DISTILL.check_images
    unlabelled_list: UserPath | None = None
    classes: Annotated[int, Field(ge=1, le=253)]  # of a label's 256 values, three are reserved: model/labels.py
    names_path: UserPath
    colors_path: UserPath
    video_block: PositiveInt = 1
    label_map: dict[LabelSource, Annotated[int, Field(ge=0, le=255)]] | None = None
    flip_pairs: list[Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]] = []
    image_max: Annotated[int, Field(ge=256, le=65535)] | None = None
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = [123.675, 116.28, 103.53]
    std: Annotated[list[float], Field(min_length=3, max_length=3)] = [58.395, 57.12, 57.375]

    @property
    def epoch_list(self) -> tuple[str, str]:
        """The path of the list that an epoch goes through, and its key."""
        if self.train_list:
            return self.train_list, "DATA.train_list"
        return self.unlabelled_list, "DATA.unlabelled_list"

    @model_validator(mode="after")
    def _check(self):
        if self.classes == 1:
            raise ValueError("classes counts the background, too: one class against the rest is classes 2")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        indices = [index for pair in self.flip_pairs for index in pair]
        if len(set(indices)) < len(indices) or max(indices, default=0) >= self.classes:
            raise ValueError("flip_pairs must name classes (0 .. classes - 1), each once")
        return self


class Train(Section):
    layers: Depth
    backbone: Backbone | None = None
    stem: Literal["plain", "deep"] = "plain"
    pretrained: UserPath = "imagenet"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    sync_bn: bool = True
    train_h: Size
    train_w: Size
    scale_min: Scale = 0.5
    scale_max: Scale = 2.0
    rotate_min: float = -10.0
    rotate_max: float = 10.0
    rotate_prob: Probability = 0.5
    blur_prob: Probability = 0.5
    flip_prob: Probability = 0.5
    zoom_factor: Literal[1, 2, 4, 8] = 8
    ignore_label: Annotated[int, Field(ge=0, le=255)] = 255
    aux_weight: NonNegativeFloat = 0.4
    class_weights: list[NonNegativeFloat] | None = None
    workers: Annotated[int, Field(ge=0, le=1024)] = 4
    batch_size: PositiveInt = 16
    unlabelled_per_batch: NonNegativeInt = 0
    accumulate: PositiveInt = 1
    batch_size_val: PositiveInt = 8
    optimizer: Literal["sgd", "adamw"] = "sgd"
    base_lr: PositiveFloat = 0.01
    head_lr_factor: PositiveFloat = 10.0
    epochs: PositiveInt = 50
    power: NonNegativeFloat = 0.9
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    manual_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    precision: Precision = "auto"
    compile: bool | Literal["auto"] = "auto"
    print_freq: PositiveInt = 10
    save_freq: PositiveInt = 1
    keep: PositiveInt = 2
    save_path: UserPath
    weight: UserPath | None = None
    new_head: bool = False
    resume: UserPath | None = "auto"
    evaluate: bool = False
    patience: PositiveInt | None = None
    gradient_shares: bool = True
    pictures: NonNegativeInt = 4

    @model_validator(mode="after")
    def _check(self):
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min is above scale_max")
        if self.rotate_min > self.rotate_max:
            raise ValueError("rotate_min is above rotate_max")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size: {self.batch_size} / {self.accumulate}")
        if self.unlabelled_per_batch % self.accumulate:
            raise ValueError("accumulate must divide unlabelled_per_batch")
        if self.new_head and not self.weight:
            raise ValueError("new_head leaves out the last layers of TRAIN.weight: name that checkpoint")
        if self.class_weights is not None and not any(self.class_weights):
            raise ValueError("class_weights are all zero: nothing would be learned")
        if self.patience and not self.evaluate:
            raise ValueError("patience counts epochs by their val mIoU: set evaluate to True")
        if self.backbone and self.stem != "plain":
            raise ValueError(f"stem {self.stem} is of ResNets; leave it out beside backbone {self.backbone}")
        return self

    @property
    def architecture(self) -> int | str:
        """timm/NAME, or the ResNet's depth."""
        return self.backbone or self.layers

    @property
    def images_per_step(self) -> int:
        """Labelled and unlabelled ones, over processes and accumulated passes."""
        return self.batch_size + self.unlabelled_per_batch


class Compare(Section):
    teacher: UserPath
    student: UserPath


class Test(Section):
    test_list: UserPath
    split: Literal["train", "val", "test"] = "val"
    base_size: Annotated[int, Field(ge=1, le=32766)]
    test_h: Size | None = None  # else TRAIN.train_h, and for test_w train_w
    test_w: Size | None = None
    scales: Annotated[list[Scale], Field(min_length=1)] = [1.0]
    flip: bool = True
    mode: Literal["slide", "whole"] = "slide"
    precision: Precision = "auto"
    has_prediction: bool = False
    index_start: NonNegativeInt = 0
    index_step: NonNegativeInt = 0
    teacher: bool = False
    model_path: UserPath | None = None  # else train_epoch_{TRAIN.epochs}.pth in TRAIN.save_path
    save_folder: UserPath | None = None  # else `result`, a teacher's `teacher/result`, beside or in TRAIN.save_path
    compare: Compare | None = None


class Config(Section):
    data: Data = Field(alias="DATA")
    train: Train = Field(alias="TRAIN")
    distill: Distill | None = Field(alias="DISTILL", default=None)
    test: Test = Field(alias="TEST")
    check: bool = Field(default=False, exclude=True)  # --check, no part of a run's settings

    @model_validator(mode="after")
    def _check(self):
        if self.train.ignore_label < self.data.classes:
            raise ValueError(
                f"TRAIN.ignore_label {self.train.ignore_label} is one of the {self.data.classes} classes; "
                "take a value outside 0 .. DATA.classes - 1 (labels that begin at 1: DATA.label_map)"
            )
        if self.distill and {self.train.precision, self.distill.precision} == {"fp32", "tf32"}:
            raise ValueError("TRAIN.precision, DISTILL.precision: fp32 and tf32 go by one switch; take one of them")
        if self.train.evaluate and not self.data.val_list:
            raise ValueError("TRAIN.evaluate needs a DATA.val_list")
        if self.test.teacher and not self.distill:
            raise ValueError("TEST.teacher needs a DISTILL section, which names the teacher; test with test_50_18.py")
        allowed = {*range(self.data.classes), self.train.ignore_label}
        if wrong := {*(self.data.label_map or {}).values()} - allowed:
            raise ValueError(f"DATA.label_map gives {min(wrong)}, neither a class nor TRAIN.ignore_label")
        if self.train.class_weights and len(self.train.class_weights) != self.data.classes:
            raise ValueError(f"TRAIN.class_weights has {len(self.train.class_weights)} numbers, not one a class")
        if not self.data.train_list:
            if not self.data.unlabelled_list:
                raise ValueError("DATA.train_list is missing (or, for a teacher alone, DATA.unlabelled_list)")
            if self.train.unlabelled_per_batch or self.train.evaluate:
                raise ValueError(
                    "without DATA.train_list set TRAIN.unlabelled_per_batch to 0 (TRAIN.batch_size counts the images "
                    "of DATA.unlabelled_list) and TRAIN.evaluate to False"
                )
            if self.distill and (self.distill.weights.ce or self.distill.weights.aux_ce):
                raise ValueError("without DATA.train_list nothing has labels: set DISTILL.weights.ce and aux_ce to 0")
        elif bool(self.data.unlabelled_list) != bool(self.train.unlabelled_per_batch):
            raise ValueError("DATA.unlabelled_list and TRAIN.unlabelled_per_batch go together: set both or neither")
        if self.distill and self.distill.cache and self.train.manual_seed is None:
            raise ValueError("DISTILL.cache needs a TRAIN.manual_seed: without one every run draws other crops")
        if self.distill and not (self.distill.teacher_path or self.distill.teacher_config):
            raise ValueError("DISTILL.teacher_path is empty; name a checkpoint, or a config in DISTILL.teacher_config")
        if self.data.unlabelled_list and not self.distill:
            raise ValueError("DATA.unlabelled_list needs a teacher (DISTILL): without one its images teach nothing")
        return self
