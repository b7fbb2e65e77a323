"""The keys of DISTILL."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from util.keys.base import Backbone, Depth, Precision, Section, UserPath

Layer = Literal["layer1", "layer2", "layer3", "layer4", "feature", "aux_feature", "aux", "logits"]
Teachers = Annotated[list[UserPath], Field(min_length=1)]
Classes = Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]


class Weights(Section):
    ce: NonNegativeFloat = 1.0
    kl: NonNegativeFloat = 1.0
    aux_mse: NonNegativeFloat = 1.0
    aux_ce: NonNegativeFloat = 0.4


class Hint(Section):
    """A loss's own options (temperature, patch ...) may stand beside these; util/train/hints.py checks them."""

    model_config = ConfigDict(extra="allow")
    layer: Layer
    teacher_layer: Layer | None = None
    loss: str
    weight: NonNegativeFloat | None = None
    standardise: bool = False


class Schedule(Section):
    shape: Literal["constant", "linear", "cosine"]
    start: NonNegativeFloat = Field(alias="from", default=0.0)
    until: PositiveFloat | None = None


class Distill(Section):
    teacher_layers: Depth = 50
    teacher_backbone: Backbone | None = None
    teacher_path: UserPath | Teachers | None = None  # else that of teacher_config: its TEST.model_path
    teacher_config: UserPath | None = None
    teacher_classes: Classes | list[Classes | None] | None = None
    teacher_weights: list[PositiveFloat] | None = None
    precision: Precision | None = None
    check_images: NonNegativeInt = 4
    cache: UserPath | None = None
    mask: Literal["labelled", "unpadded"] = "labelled"
    temperature: PositiveFloat = 2.0
    standardise: bool = False
    weights: Weights = Weights()
    hints: list[Hint] = []
    schedules: dict[str, Schedule] = {}

    @property
    def teacher_architecture(self) -> int | str:
        """timm/NAME, or the ResNet's depth."""
        return self.teacher_backbone or self.teacher_layers

    @property
    def teachers(self) -> list[str]:
        """What teacher_path names, of one teacher or of several."""
        return self.teacher_path if isinstance(self.teacher_path, list) else [self.teacher_path]

    @property
    def mappings(self) -> list[dict[str, list[str]] | None]:
        """teacher_classes for each of the teachers."""
        own = self.teacher_classes
        return own if isinstance(own, list) else [own] * len(self.teachers)

    @model_validator(mode="after")
    def _check(self):
        for key, values in (("teacher_classes", self.mappings), ("teacher_weights", self.teacher_weights)):
            if values is not None and len(values) != len(self.teachers):
                raise ValueError(f"{key} has {len(values)} entries for {len(self.teachers)} teachers in teacher_path")
        return self
