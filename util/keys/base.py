"""What the keys of all sections share."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

Depth = Literal[18, 34, 50, 101, 152]
Precision = Literal["auto", "fp32", "tf32", "bf16"]
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """Unknown keys fail, values keep their type (no "21" for 21), nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
