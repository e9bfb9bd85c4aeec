"""Domains: what may stand in a leaf of a space instead of a value. The words are Optuna's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator
from pydantic.json_schema import SkipJsonSchema


class _Domain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Range(_Domain):
    log: bool = False
    low: Any
    high: Any
    step: Any = None

    @model_validator(mode="after")
    def _ordered(self) -> _Range:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, found {self.low}")
        if self.log and self.step is not None:
            raise ValueError(f"log and step exclude each other, found step {self.step}")
        return self


class FloatRange(_Range):
    """A number from low to high, both included."""

    type: Literal["float"] = "float"
    low: FiniteFloat
    high: FiniteFloat
    step: Annotated[FiniteFloat, Gt(0)] | None = None


class IntRange(_Range):
    """A whole number from low to high, both included."""

    type: Literal["int"] = "int"
    low: Annotated[int, Ge(-(2**53)), Le(2**53)]
    high: Annotated[int, Ge(-(2**53)), Le(2**53)]
    step: Annotated[int, Gt(0)] | None = None


class Categorical(_Domain):
    """One of the choices."""

    type: Literal["categorical"] = "categorical"
    choices: Annotated[list[Any], Len(1)]


class Subset(_Domain):
    """Some of the branches: each is in or out, at least `min` and at most `max` of them in."""

    type: Literal["subset"] = "subset"
    of: list[str] = []
    min: Annotated[int, Ge(1)] = 1
    max: Annotated[int, Ge(1)] | None = None


class Simplex(_Domain):
    """Weights of the tasks, each at least `low`, that sum to one."""

    type: Literal["simplex"] = "simplex"
    over: SkipJsonSchema[list[str]] = []
    low: Annotated[float, Ge(0), Lt(1)] = 0.0
    step: Annotated[float, Gt(0), Le(1)] | None = None


Domain = FloatRange | IntRange | Categorical | Subset | Simplex
DOMAINS: dict[str, type[Domain]] = {
    "float": FloatRange,
    "int": IntRange,
    "categorical": Categorical,
    "subset": Subset,
    "simplex": Simplex,
}
