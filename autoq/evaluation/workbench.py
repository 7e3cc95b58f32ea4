"""One trial: build the candidate, load it, time it, score it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from autoq.core.artifacts import AssembledModel
from autoq.core.choices import Candidate
from autoq.core.data import Feed, Split
from autoq.core.digests import digest_json
from autoq.core.measurements import Accuracy, Baseline, Latency, Measurement, Size
from autoq.evaluation.accuracy import KeptOutputs, SplitScorer
from autoq.evaluation.batches import Feeding
from autoq.evaluation.faithful import check_faithful
from autoq.evaluation.metered import MeteredSession
from autoq.evaluation.metrics import MetricSpec
from autoq.evaluation.ports import Assembler, OutputCache, Session, Target
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


@dataclass(frozen=True, slots=True)
class FinalFigures:
    """Fresh, longer timing of a candidate, and its score on the test split if there is one."""

    latency: Latency
    test: Accuracy | None


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
            self.seconds[name] = time.perf_counter() - start


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
        self._search = self._scorer(data.search, kept)
        self._test = None if data.test is None else self._scorer(data.test, kept)
        self._float_session: Session | None = None
        self._baseline: Baseline | None = None

    def measure_baseline(self) -> Baseline:
        """Score and time the float model, with the A/A control that gives the noise floor.

        Raises:
            ModelError: The float model's outputs hold NaN or do not fit the metric.
            UserError: The metric failed.
        """
        session = self._opened_float_model()
        score = self._search.score_baseline(session)
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
        )
        return self._baseline

    def restore(self, baseline: Baseline) -> None:
        """Take up a baseline that was measured before; what candidates are compared with is run, or read."""
        self._search.score_baseline(self._opened_float_model())
        self._baseline = baseline

    def run_trial(self, candidate: Candidate) -> Measurement:
        """Assemble and measure one candidate on the search split.

        `seconds` of the measurement: build, load, latency, accuracy, and inference, which is the part
        of latency and accuracy that the models themselves ran.

        Raises:
            TrialError: The candidate failed.
            UserError: The metric failed.
        """
        parts = _Parts()
        with parts.timed("build"):
            built = self._assembler.assemble(candidate)
        with self._loaded(built, parts) as session:
            with parts.timed("latency"):
                latency = self._time(session, candidate, self._settings.timing.search)
            with parts.timed("accuracy"):
                accuracy = self._search.accuracy(session)
        size = Size(built.artifact.size_bytes, built.bundle_bytes)
        digest = built.artifact.digest
        return Measurement(accuracy, latency, size, built.storage_only, digest, parts.seconds)

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
        return FinalFigures(latency, test)

    def close(self) -> None:
        """Free the float model's session."""
        if self._float_session is not None:
            self._float_session.close()
            self._float_session = None

    def _scored_test(self, scorer: SplitScorer, session: Session) -> Accuracy:
        if not scorer.is_ready:  # restored, not measured: the test split has waited until it is needed
            scorer.score_baseline(self._opened_float_model())
        return scorer.accuracy(session)

    def _scorer(self, split: Split, kept: KeptOutputs | None) -> SplitScorer:
        settings = self._settings
        return SplitScorer(split, settings.metric, settings.feeding, output=settings.output, kept=kept)

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
