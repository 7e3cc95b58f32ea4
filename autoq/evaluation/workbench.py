"""One trial: build the candidate, load it, time it, score it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from autoq.core.artifacts import AssembledModel
from autoq.core.choices import Candidate
from autoq.core.data import Feed, Split
from autoq.core.digests import digest_json
from autoq.core.measurements import Accuracy, Baseline, Latency, Measurement, Size
from autoq.evaluation.accuracy import KeptOutputs, SplitScorer
from autoq.evaluation.batches import Feeding
from autoq.evaluation.contest import NEVER, Opponent, Stopping
from autoq.evaluation.faithful import check_faithful
from autoq.evaluation.metered import MeteredSession
from autoq.evaluation.metrics import MetricSpec
from autoq.evaluation.order import ScoringOrder
from autoq.evaluation.ports import Assembler, OutputCache, Session, Target
from autoq.evaluation.racing import RacingSettings
from autoq.evaluation.statistics import Values
from autoq.evaluation.timing import Effort, TimingSettings, measure_control, measure_latency


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """What candidates are measured with."""

    search: Split
    test: Split | None
    timing_feeds: tuple[Feed, ...]  # at the batch size, never empty


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How candidates are measured."""

    metric: MetricSpec
    feeding: Feeding
    output: str | None = None  # the one to score, where there are several
    timing: TimingSettings = field(default_factory=TimingSettings)
    seed: int = 0
    racing: RacingSettings | None = None  # None scores every candidate on the whole split


@dataclass(frozen=True, slots=True)
class FinalFigures:
    """Fresh, longer timing of a candidate, and its score on the test split if there is one."""

    latency: Latency
    test: Accuracy | None


@dataclass(frozen=True, eq=False)
class _Known:
    """A candidate that has been scored on the whole search split."""

    accuracy: Accuracy
    axes: Mapping[str, float]  # by their names in `RacingSettings`, all minimised
    values: Values


@dataclass
class _Parts:
    """Seconds of a trial by part."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Workbench:
    """Measures candidates beside the float model, which stays loaded.

    Not safe to use from several threads. Whoever calls it holds the machine's clock
    (`autoq.evaluation.clock.machine_clock`) from the beginning of a method to its end.
    """

    def __init__(
        self,
        assembler: Assembler,
        target: Target,
        data: EvaluationData,
        settings: EvaluationSettings,
        outputs: OutputCache | None = None,
    ) -> None:
        """Load the metric; nothing is run yet.

        Args:
            assembler: Builds candidates.
            target: Runs and times them.
            data: What they are measured with.
            settings: How they are measured.
            outputs: What spares running the float model over a split that it has seen before.

        Raises:
            UserError: The metric cannot be loaded, or needs labels that a split lacks.
        """
        self._assembler = assembler
        self._target = target
        self._data = data
        self._settings = settings
        self._float_model = assembler.float_model()
        kept = None if outputs is None else KeptOutputs(outputs, self._origin())
        racing = settings.racing
        seed = settings.seed if racing is None else racing.seed
        order = ScoringOrder.of(data.search, settings.feeding.batch_size, seed=seed)
        self._search = self._scorer(data.search, kept, order)
        self._test = None if data.test is None else self._scorer(data.test, kept)
        self._known: list[_Known] = []
        self._float_session: Session | None = None
        self._baseline: Baseline | None = None

    def measure_baseline(self) -> Baseline:
        """Score and time the float model, with the A/A control that gives the noise floor.

        Raises:
            ModelError: The float model's outputs hold NaN or do not fit the metric.
            UserError: The metric failed.
        """
        session = self._opened_float_model()
        is_deterministic = self._search.is_repeatable(session)
        score = self._search.score_baseline(session)
        jitter = 0.0 if is_deterministic else self._search.measure_jitter(session)
        test = None if self._test is None else self._test.score_baseline(session).value
        settings = self._settings
        control = measure_control(
            lambda: self._target.open(self._float_model),
            self._data.timing_feeds,
            settings.timing,
            seed=settings.seed,
        )
        self._baseline = Baseline(
            accuracy=score.value,
            latency_ms=control.latency_ms.value,
            latency_ms_ci=(control.latency_ms.low, control.latency_ms.high),
            latency_p90_ms=control.p90_ms,
            size_bytes=self._float_model.size_bytes,
            noise_floor=control.noise_floor,
            test_accuracy=test,
            is_deterministic=is_deterministic,
            accuracy_jitter=jitter,
        )
        return self._baseline

    def restore(self, baseline: Baseline) -> None:
        """Take up a baseline that was measured before; what candidates are compared with is run, or read."""
        session = self._opened_float_model()
        self._search.score_baseline(session)
        if not baseline.is_deterministic:
            self._search.measure_jitter(session)
        self._baseline = baseline

    def run_trial(self, candidate: Candidate) -> Measurement:
        """Assemble and measure one candidate on the search split, or on as much of it as tells enough.

        `seconds` of the measurement: build, load (with what the bundle takes), latency, accuracy, and
        inference, which is the part of latency and accuracy that the models themselves ran.

        Raises:
            TrialError: The candidate failed.
            UserError: The metric failed.
        """
        parts = _Parts()
        with parts.timed("build"):
            built = self._assembler.assemble(candidate)
        # Packing and hashing let go of Python, as the runtime does while it reads the model.
        with ThreadPoolExecutor(1) as aside:
            weighed = aside.map(AssembledModel.weigh, [built])
            with self._loaded(built, parts) as session:
                with parts.timed("load"):  # nothing runs beside a clock
                    size = next(weighed)
                with parts.timed("latency"):
                    latency = self._time(session, candidate, self._settings.timing.search)
                with parts.timed("accuracy"):
                    scored = self._search.score(session, self._stopping(latency, size))
        if scored.values is not None:
            self._known.append(_Known(scored.accuracy, _axes(latency, size), scored.values))
        return Measurement(
            self._settled(scored.accuracy, built),
            latency,
            size,
            built.storage_only,
            built.artifact.digest,
            parts.seconds,
            scored.divergence,
        )

    def measure_divergence(self, candidate: Candidate) -> float:
        """Assemble a candidate and run it on the first examples alone; no labels, no clock.

        Returns:
            Distance from the float model, see `autoq.evaluation.divergence`.

        Raises:
            TrialError: The candidate failed, or its outputs are not finite.
        """
        built = self._assembler.assemble(candidate)
        with self._loaded(built, _Parts()) as session:
            return self._search.divergence(session)

    def measure_latency(self, candidate: Candidate) -> Latency:
        """Assemble a candidate and time it, shortly.

        Raises:
            TrialError: The candidate failed.
        """
        built = self._assembler.assemble(candidate)
        with self._loaded(built, _Parts()) as session:
            return self._time(session, candidate, self._settings.timing.probe)

    def run_final(self, candidate: Candidate) -> FinalFigures:
        """Check that the runtime is faithful to the candidate, time it for longer, score the test split.

        Raises:
            UnfaithfulModel: The optimised graph computes something else than the one written.
            TrialError: The candidate failed.
            UserError: The metric failed.
        """
        built = self._assembler.assemble(candidate)
        feeds = self._data.timing_feeds
        check_faithful(self._target, built.artifact, self._opened_float_model(), feeds)
        with self._loaded(built, _Parts()) as session:
            latency = self._time(session, candidate, self._settings.timing.final)
            test = None if self._test is None else self._scored_test(self._test, session)
        return FinalFigures(latency, None if test is None else self._settled(test, built))

    def close(self) -> None:
        """Free the float model's session."""
        if self._float_session is not None:
            self._float_session.close()
            self._float_session = None

    def _settled(self, accuracy: Accuracy, model: AssembledModel) -> Accuracy:
        """Leave no doubt where there is none: against itself the float model drops nothing on any data."""
        is_itself = model.artifact.digest == self._float_model.digest
        is_fixed = self._baseline is not None and self._baseline.is_deterministic
        # A metric of the user's may still draw numbers of its own.
        if not (is_itself and is_fixed) or accuracy.drop != 0.0 or accuracy.drop_ci is None:
            return accuracy
        return replace(accuracy, drop_ci=(0.0, 0.0))

    def _scored_test(self, scorer: SplitScorer, session: Session) -> Accuracy:
        if not scorer.is_ready:  # restored, not measured: the test split has waited until it is needed
            scorer.score_baseline(self._opened_float_model())
        assert self._baseline is not None, "the baseline is measured before any candidate"
        if not self._baseline.is_deterministic and not scorer.knows_jitter:
            scorer.measure_jitter(self._opened_float_model())
        return scorer.accuracy(session)

    def _scorer(
        self, split: Split, kept: KeptOutputs | None, order: ScoringOrder | None = None
    ) -> SplitScorer:
        settings = self._settings
        return SplitScorer(
            split, settings.metric, settings.feeding, output=settings.output, kept=kept, order=order
        )

    def _stopping(self, latency: Latency, size: Size) -> Stopping:
        """Say when scoring a candidate may stop, by what is known of it already."""
        racing, baseline = self._settings.racing, self._baseline
        assert baseline is not None, "the baseline is measured before any candidate"
        # Values that change from run to run are no fixed population to draw from.
        if racing is None or not baseline.is_deterministic:
            return NEVER
        if _is_too_slow(latency, baseline, racing):
            return Stopping(n_max=racing.n_first)
        if self._settings.metric.scope != "example" or self._settings.metric.span is None:
            return NEVER
        return Stopping(opponent=self._opponent(racing, _axes(latency, size, is_lower_bound=True)))

    def _opponent(self, racing: RacingSettings, axes: Mapping[str, float]) -> Opponent | None:
        """Return the baseline if a drop is allowed, else the most accurate candidate that costs no more.

        It costs no more even at the lower end of the latency's interval: what loses to it is dominated.
        """
        if racing.max_accuracy_drop is not None:
            values = self._search.baseline.values
            return None if values is None else Opponent(values, racing.max_accuracy_drop, racing.alpha)
        cheaper = [
            known for known in self._known if all(known.axes[axis] <= axes[axis] for axis in racing.axes)
        ]
        if not cheaper:
            return None
        best = min(cheaper, key=lambda known: known.accuracy.drop)
        return Opponent(best.values, 0.0, racing.alpha)

    def _origin(self) -> str:
        """Hash what decides a model's outputs, bit by bit, beside what it is fed.

        Threads are part of it: how a runtime cuts a matrix product up can change the last bit.
        """
        return digest_json([self._float_model.digest, self._target.environment()])

    def _opened_float_model(self) -> Session:
        if self._float_session is None:
            self._float_session = self._target.open(self._float_model)
        return self._float_session

    @contextmanager
    def _loaded(self, model: AssembledModel, parts: _Parts) -> Iterator[MeteredSession]:
        with parts.timed("load"):
            session = MeteredSession(self._target.open(model.artifact))
        try:
            yield session
        finally:
            session.close()
            parts.seconds["inference"] = session.seconds

    def _time(self, session: MeteredSession, candidate: Candidate, effort: Effort) -> Latency:
        assert self._baseline is not None, "the baseline is measured before any candidate"
        baseline_session = MeteredSession(self._opened_float_model())
        # Of its own for every candidate, and the same however often a search is resumed.
        seed = self._settings.seed + int(candidate.digest[:8], 16)
        ratio = measure_latency(session, baseline_session, self._data.timing_feeds, effort, seed=seed)
        session.seconds += baseline_session.seconds
        return ratio.as_latency(self._baseline)


def _axes(latency: Latency, size: Size, *, is_lower_bound: bool = False) -> dict[str, float]:
    latency_ms = latency.latency_ms_ci[0] if is_lower_bound else latency.latency_ms
    return {"latency": latency_ms, "size": size.size_bytes, "storage": size.bundle_bytes}


def _is_too_slow(latency: Latency, baseline: Baseline, racing: RacingSettings) -> bool:
    """Whether even the lower end of the interval is over the budget."""
    fastest_ms = latency.latency_ms_ci[0]
    over_ms = racing.max_latency_ms is not None and fastest_ms > racing.max_latency_ms
    over_ratio = (
        racing.max_latency_ratio is not None and fastest_ms / baseline.latency_ms > racing.max_latency_ratio
    )
    return over_ms or over_ratio
