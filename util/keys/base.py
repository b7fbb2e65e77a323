"""What the keys of all sections share."""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

Depth = Literal[18, 34, 50, 101, 152]
Precision = Literal["auto", "fp32", "tf32", "bf16"]


def _timm_name(name: str) -> str:
    if name and not re.fullmatch(r"timm/[\w.-]+", name):
        raise ValueError("write timm/NAME, such as timm/mobilenetv3_small_100, or leave it empty for a ResNet")
    return name


Backbone = Annotated[str, AfterValidator(_timm_name)]
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """Unknown keys fail, values keep their type (no "21" for 21), nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
