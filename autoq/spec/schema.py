"""The spec of one search, as written in YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, Tag, ValidationInfo, field_validator, model_validator

from autoq.core.choices import Criterion
from autoq.core.names import SLUG_PATTERN
from autoq.evaluation.metrics import builtin_metric
from autoq.search.goals import Constraints, Goals, Objective
from autoq.spec.fields import (
    NAME_TAG,
    Count,
    FilePath,
    Flag,
    NotNegative,
    Number,
    OneOrMore,
    Ordered,
    Positive,
    PythonReference,
    Section,
    Text,
    Whole,
    decided_by,
    mistake,
    problem,
)
from autoq.spec.spaces import SpaceSpec

MAX_OBJECTIVES = 3

Strategy = Literal["guided", "tpe", "nsga2", "gp", "random"]
FinalistRounding = Literal["adaround"]  # too slow to search with
BuiltinMetric = Literal["top1", "top5", "fidelity"]
Scope = Literal["example", "set"]
Direction = Literal["maximize", "minimize"]
DType = Literal["float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
Slug = Annotated[str, Field(strict=True, pattern=SLUG_PATTERN)]
Seed = Annotated[Whole, Field(ge=0)]
Fraction = Annotated[Number, Field(gt=0, le=1)]


class ExampleSpec(Section):
    """An example input of a torch module."""

    shape: tuple[Count | Text, ...]  # an axis given as text is dynamic, under that name
    dtype: DType = "float32"
    low: Number = 0.0
    high: Number = 1.0  # integers are drawn from [low, high)


class OnnxModelSpec(Section):
    """A model in an ONNX file."""

    path: FilePath
    output: Text | None = None  # the one to score, if there are several


class TorchModelSpec(Section):
    """A torch module made by a factory, exported once."""

    torch: PythonReference
    example: Ordered[str, ExampleSpec] = Field(min_length=1)  # by the names of forward's parameters
    checkpoint: FilePath | None = None  # state dict
    output: Text | None = None


ModelSpec = Annotated[
    Annotated[OnnxModelSpec, Tag("OnnxModelSpec")] | Annotated[TorchModelSpec, Tag("TorchModelSpec")],
    decided_by(
        {"path": OnnxModelSpec, "torch": TorchModelSpec},
        expectation="{path: FILE} or {torch: FACTORY, example: {...}}",
    ),
]


class NpzSource(Section):
    """Arrays of one npz file."""

    npz: FilePath
    inputs: dict[str, Text] = Field(min_length=1)  # model input -> array in the file
    labels: Text | None = None


class PythonSource(Section):
    """A callable that gives (inputs, labels) batches."""

    python: PythonReference


Source = Annotated[
    Annotated[NpzSource, Tag("NpzSource")] | Annotated[PythonSource, Tag("PythonSource")],
    decided_by(
        {"npz": NpzSource, "python": PythonSource},
        expectation="{npz: FILE, inputs: {...}} or {python: FACTORY}",
    ),
]


class SplitSpec(Section):
    """Fractions of one labelled set; what is left over is not used."""

    search: Fraction
    test: Fraction | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _at_most_everything(self) -> SplitSpec:
        # Fractions that sum to 1 on paper may miss it by an ulp.
        total = self.search + (self.test or 0.0)
        if total > 1.0 + 1e-9:
            raise mistake(f"the fractions sum to {total:g}, expected at most 1")
        return self


class TransformSpec(Section):
    """What is done to an input: float32 value = raw * scale + offset."""

    scale: Number = 1.0
    offset: Number = 0.0

    @field_validator("scale", mode="before")
    @classmethod
    def _keeps_the_data(cls, scale: object) -> object:
        if scale == 0:
            raise problem("a number other than 0")
        return scale


class DataSpec(Section):
    """Where the splits come from: each by itself, or search and test out of one labelled set."""

    calibration: Source
    search: Source | None = None
    test: Source | None = None
    labelled: Source | None = None
    split: SplitSpec | None = None
    transform: dict[str, TransformSpec] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> DataSpec:
        if (self.labelled is None) != (self.split is None):
            raise mistake("labelled and split need each other: a set, and the fractions to split it into")
        if self.labelled is None and self.search is None:
            raise mistake("no search split, expected search, or labelled with split")
        if self.labelled is not None and (self.search is not None or self.test is not None):
            raise mistake("two sources of one split, expected either search and test, or labelled with split")
        return self


class PythonMetricSpec(Section):
    """A metric of the user's: function(outputs, reference, labels)."""

    python: PythonReference
    scope: Scope = "set"  # `example` only where the metric is the mean of the values: it is raced
    direction: Direction = "maximize"
    bounds: tuple[Number, Number] | None = None  # of the values

    @field_validator("bounds")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and not bounds[0] < bounds[1]:
            raise problem("[low, high] with low < high")
        return bounds


MetricSpec = Annotated[
    Annotated[BuiltinMetric, Tag(NAME_TAG)] | Annotated[PythonMetricSpec, Tag("PythonMetricSpec")],
    decided_by(
        {"python": PythonMetricSpec},
        *get_args(BuiltinMetric),
        expectation="top1, top5, fidelity or {python: 'file.py:function', ...}",
    ),
]


class ConstraintSpec(Section):
    """Upper bounds that a feasible point keeps; null is no bound."""

    max_latency_ms: Positive | None = None
    max_latency_ratio: Positive | None = None
    max_accuracy_drop: NotNegative | None = None  # absolute, in the metric's unit
    max_size_bytes: Count | None = None
    max_bundle_bytes: Count | None = None


class TargetSpec(Section):
    """Where candidates run."""

    runtime: Text = "onnxruntime"
    device: Text = "cpu"
    threads: Count = 1
    batch_size: Count = 1


class TimingSpec(Section):
    """How long, and on what shapes, candidates are timed."""

    shapes: dict[str, Count] = Field(default_factory=dict)  # by the names of dynamic axes
    search_s: Positive = 3.0  # for each trial
    final_s: Positive = 30.0  # for each finalist
    fixed_effort: Flag = False  # spend all of search_s on every trial; for experiments


class StrategySpec(Section):
    """How the space is searched, and for how long."""

    trials: Count = 60
    time_budget_s: Positive | None = None
    patience: Count | None = None  # trials without a better front
    seed: Seed = 0
    strategy: Strategy = "guided"
    trial_timeout_s: Positive = 120.0
    trial_memory_mb: Count = 4096
    racing: Flag = True  # stop scoring a candidate once it is ruled out; for metrics that are means
    # After the trials, the best points are tried again with this rounding on all layers below 8 bits.
    finalist_rounding: FinalistRounding | None = None


class SearchSpec(Section):
    """One search. Paths are absolute once it is loaded."""

    version: Literal[1]
    name: Slug
    model: ModelSpec
    data: DataSpec
    metric: MetricSpec = "top1"
    objectives: OneOrMore[Objective] = (Objective.ACCURACY, Objective.LATENCY)
    constraints: ConstraintSpec = ConstraintSpec()
    target: TargetSpec = TargetSpec()
    timing: TimingSpec = TimingSpec()
    space: SpaceSpec
    search: StrategySpec = StrategySpec()

    @field_validator("objectives")
    @classmethod
    def _few(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if len(objectives) > MAX_OBJECTIVES:
            raise problem(f"at most {MAX_OBJECTIVES} objectives")
        return objectives

    @model_validator(mode="after")
    def _has_gradients(self) -> SearchSpec:
        is_fisher = self.space.rewrites.widths.criterion is Criterion.FISHER
        if is_fisher and isinstance(self.model, OnnxModelSpec):
            raise mistake(
                "space.rewrites.widths.criterion: fisher needs gradients, which an ONNX file does not have, "
                "expected a torch factory as model.torch, or another criterion"
            )
        return self

    @model_validator(mode="after")
    def _can_drop_so_far(self, info: ValidationInfo) -> SearchSpec:
        if info.context is None or info.context.get("base") is None:
            return self  # stored before this was asked
        drop, most = self.constraints.max_accuracy_drop, _span(self.metric)
        if drop is not None and most is not None and drop > most:
            raise mistake(
                f"constraints.max_accuracy_drop: expected at most {most:g}, the whole range of the metric, "
                f"got {drop:g}"
            )
        return self

    @property
    def goals(self) -> Goals:
        """What the search is for, in the vocabulary of `autoq.search`."""
        maximize = isinstance(self.metric, str) or self.metric.direction == "maximize"
        return Goals(self.objectives, Constraints(**self.constraints.model_dump()), maximize)

    def to_json(self) -> dict[str, Any]:
        """Return the normalised spec, JSON-able; `spec_from_json` is the inverse."""
        content: dict[str, Any] = self.model_dump(mode="json")
        return content


def _span(metric: BuiltinMetric | PythonMetricSpec) -> float | None:
    """Width of a metric's range; None if nobody has said how wide it is."""
    bounds = builtin_metric(metric).bounds if isinstance(metric, str) else metric.bounds
    return None if bounds is None else bounds[1] - bounds[0]
