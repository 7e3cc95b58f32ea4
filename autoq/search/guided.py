"""The guided strategy: a few trials, each chosen by what the model of the model expects of it.

Seeds come first: for a grid of budgets the allocation that loses least. Then Optuna tunes a few genes
(budgets, and how much each stage of the network counts) that are decoded by the same allocation; SPDY
(Frantar & Alistarh 2022) searches such coefficients. The last third changes one to three slots of front
members. Whatever the source, of all candidates at hand the one with the largest expected gain is tried,
and what it turns out to be corrects the next forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from autoq.core.choices import Candidate, Rewrites
from autoq.core.measurements import Baseline, Measurement
from autoq.search.acquisition import Forecast, Worth
from autoq.search.decoding import Decoder
from autoq.search.forecasts import Forecaster
from autoq.search.genes import gene_distributions, plain_genes
from autoq.search.goals import Goals, Objective
from autoq.search.guide import Floats, Guide, Stitch
from autoq.search.neighbours import Change, all_changes, combined_changes, single_changes
from autoq.search.proposals import Proposal
from autoq.search.records import TrialRecord, TrialState
from autoq.search.samplers import new_sampler, seed_of
from autoq.search.sensitivity import sensitivities
from autoq.search.studies import study_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_LATENCY_STEPS = (0.0, 0.08, 0.2, 0.35, 0.6, 1.0)
_BYTES_STEPS = (0.0, 0.03, 0.06, 0.12, 0.18, 0.25, 0.4, 0.6, 1.0)
_SEED_SHARE, _FLIP_SHARE = 0.4, 1 / 3  # of the trials after the anchors
_N_ASKED = 8  # gene vectors decoded for one trial
_BEST_EVERY = 3  # so often the best point is improved rather than the front
_WORTHWHILE = 0.005  # of speed, or of the allowed drop: less is not worth a trial of its own
_MAX_PARENTS = 5
_N_PAIRED = 10


@dataclass(frozen=True)
class Idea:
    """A stitch that may be tried, with where it comes from."""

    stitch: Stitch
    kind: str  # seed | genes | flip
    text: str
    params: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[Change] = ()  # of a flip

    def why(self, guide: Guide) -> str:
        """Say it to people."""
        return ", ".join([self.text, *(change.text(guide) for change in self.changes)])


class GuidedStrategy:
    """See the module. Everything follows from the guide and the trials taught."""

    def __init__(
        self, guide: Guide, *, goals: Goals, baseline: Baseline, n_anchors: int, n_trials: int, seed: int
    ) -> None:
        self._guide, self._goals, self._baseline = guide, goals, baseline
        self._n_anchors, self._n_trials, self._seed = n_anchors, max(n_trials, n_anchors + 1), seed
        self._trials: list[TrialRecord] = []
        self._seeds: list[Idea] | None = None
        self._has_warned = False  # what was said; what is proposed does not depend on it

    @cached_property
    def _costs(self) -> Mapping[Rewrites, Sequence[Floats]]:
        return sensitivities(self._guide)

    @cached_property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Optuna's distribution of every gene."""
        return gene_distributions(
            len(self._guide.rewrites),
            latency=Objective.LATENCY in self._goals.objectives or self._worth([]).max_latency is not None,
            n_bytes=self._weighs_bytes,
        )

    def adopt(self, candidate: Candidate) -> Proposal:
        """Forecast an anchor's latency, so that the model can be held to it."""
        stitch = self._guide.stitch(candidate)
        if stitch is None:
            return Proposal(
                candidate, reasons={"kind": "anchor", "why": "outside the space: nothing is foretold"}
            )
        ratio, sd = self._forecaster(self._trials).latency.predict([stitch])
        reasons = {
            "kind": "anchor",
            "why": "what a user could get by hand",
            **self._latency_reasons(ratio[0], sd[0]),
        }
        return Proposal(candidate, reasons=reasons)

    def teach(self, trial: TrialRecord) -> None:
        """Take in a trial."""
        self._trials.append(trial)

    def propose(self, number: int) -> Proposal:
        """Propose the candidate with the largest expected gain."""
        forecaster = self._forecaster(self._trials)
        worth = self._worth(self._measured(self._trials))
        impossible = self._impossible(forecaster, worth)
        warning = "" if self._has_warned else impossible
        self._has_warned = self._has_warned or bool(impossible)
        ideas = self._fresh(self._ideas(number, forecaster))
        if not ideas:  # everything at hand has been tried: any change of anything will do
            ideas = self._fresh(self._flips(number, forecaster, self._trials, n_parents=len(self._trials)))
        if not ideas:
            return self._repeat(warning)
        forecast = forecaster([idea.stitch for idea in ideas])
        aim, score = self._scored(number, forecast, worth, nearest=bool(impossible))
        at = int(np.argmax(score))
        return self._proposal(ideas[at], forecast, at, forecaster, aim, warning, gain=float(score[at]))

    # --- ideas -----------------------------------------------------------------------------------

    def _ideas(self, number: int, forecaster: Forecaster) -> list[Idea]:
        done = (number - self._n_anchors) / max(self._n_trials - self._n_anchors, 1)
        ideas = list(self._seed_ideas(forecaster))
        if done >= _SEED_SHARE:
            ideas += self._genes(number, forecaster)
        if done >= 1.0 - _FLIP_SHARE:
            ideas += self._flips(number, forecaster, self._trials)
        return ideas

    def _seed_ideas(self, forecaster: Forecaster) -> list[Idea]:
        """Allocations over a grid of budgets, by what the anchors have taught; made once."""
        if self._seeds is None:
            if len(self._trials) > self._n_anchors:  # a search that is resumed knows more by now
                forecaster = self._forecaster(self._trials[: self._n_anchors])
            self._seeds = [
                idea for rewrites in self._guide.rewrites for idea in self._seeds_of(rewrites, forecaster)
            ]
        return self._seeds

    def _seeds_of(self, rewrites: Rewrites, forecaster: Forecaster) -> list[Idea]:
        decoder = self._decoder(rewrites, forecaster)
        latency_steps = _LATENCY_STEPS if "latency" in self.distributions else (1.0,)
        bytes_steps = _BYTES_STEPS if "bytes" in self.distributions else (1.0,)
        position = float(self._guide.rewrites.index(rewrites))
        found: dict[Stitch, Idea] = {}
        # The loosest budgets first: what keeps to tighter ones is not solved again. They have the last word.
        for latency, n_bytes in product(reversed(latency_steps), reversed(bytes_steps)):
            genes = plain_genes(self.distributions, latency=latency, bytes=n_bytes, rewrites=position)
            stitch = decoder.decode(genes)
            if stitch is not None:
                text = f"least loss at {latency:.0%} of the latency and {n_bytes:.0%} of the bytes to be had"
                found.pop(stitch, None)
                found[stitch] = Idea(stitch, "seed", text, genes)
        return list(reversed(found.values()))

    def _genes(self, number: int, forecaster: Forecaster) -> list[Idea]:
        study = study_of(self._trials, self._goals, self._baseline, self.distributions)
        study.sampler = new_sampler("tpe", seed_of(self._seed, number))
        ideas = []
        decoders: dict[Rewrites, Decoder] = {}
        for _ in range(_N_ASKED):
            genes = study.ask(dict(self.distributions)).params
            rewrites = self._guide.rewrites[int(genes.get("rewrites", 0))]
            if rewrites not in decoders:
                decoders[rewrites] = self._decoder(rewrites, forecaster)
            stitch = decoders[rewrites].decode(genes)
            if stitch is not None:
                ideas.append(Idea(stitch, "genes", "Optuna's genes, decoded by the allocation", genes))
        return ideas

    def _flips(
        self,
        number: int,
        forecaster: Forecaster,
        trials: Sequence[TrialRecord],
        *,
        n_parents: int = _MAX_PARENTS,
    ) -> list[Idea]:
        """One to three slots of front members changed, the most promising changes together."""
        rng = np.random.default_rng(seed_of(self._seed, number))
        worth = self._worth(self._measured(trials))
        ideas: dict[Stitch, Idea] = {}
        for parent, stitch in self._parents(trials)[:n_parents]:
            singles = single_changes(self._changes[stitch.rewrites], stitch, rng)
            gains = worth.front_gain(forecaster([one.apply(stitch) for one in singles]))
            ranked = [singles[at] for at in np.argsort(-gains, kind="stable")[:_N_PAIRED]]
            for changes in [*((one,) for one in singles), *combined_changes(ranked)]:
                changed = stitch
                for change in changes:
                    changed = change.apply(changed)
                text = f"trial {parent} changed"
                ideas.setdefault(changed, Idea(changed, "flip", text, changes=changes))
            for rewrites in self._guide.rewrites:
                if rewrites != stitch.rewrites and (rewrites.widths or stitch.rewrites.widths):
                    resized = replace(stitch, rewrites=rewrites)
                    ideas.setdefault(resized, Idea(resized, "flip", f"trial {parent} at another width"))
        return list(ideas.values())

    def _parents(self, trials: Sequence[TrialRecord]) -> list[tuple[int, Stitch]]:
        """Measured trials in the space, those that hold most of the front's volume first."""
        known = [
            (trial.number, stitch, trial.measurement)
            for trial in trials
            if trial.state is TrialState.COMPLETE
            and trial.measurement is not None
            and not trial.measurement.accuracy.is_estimate
            and (stitch := self._guide.stitch(trial.candidate)) is not None
        ]
        measurements = [one[2] for one in known]
        lost = self._worth(measurements).held()
        order = sorted(range(len(known)), key=lambda at: (-lost[at], measurements[at].accuracy.drop, at))
        return [(known[at][0], known[at][1]) for at in order]

    def _fresh(self, ideas: Sequence[Idea]) -> list[Idea]:
        tried = {self._guide.stitch(trial.candidate) for trial in self._trials}
        found = {idea.stitch: idea for idea in reversed(ideas)}  # of equal stitches the first
        return [idea for stitch, idea in found.items() if stitch not in tried]

    # --- judging ---------------------------------------------------------------------------------

    def _scored(self, number: int, forecast: Forecast, worth: Worth, *, nearest: bool) -> tuple[str, Floats]:
        if nearest:
            return "nearest", -worth.excess(forecast)
        if worth.has_bounds and number % _BEST_EVERY == 0:
            gain = worth.best_gain(forecast)
            if gain.max() > _WORTHWHILE:
                return "best", gain
        gain = worth.front_gain(forecast)
        if not worth.any_feasible and gain.max() <= _WORTHWHILE:  # every bound looks out of reach
            return "nearest", -worth.excess(forecast)
        return "front", gain

    def _impossible(self, forecaster: Forecaster, worth: Worth) -> str:
        """Say so when even the fastest stitch is over the latency budget, the model's doubt allowed for."""
        if worth.max_latency is None:
            return ""
        found = [
            stitch
            for rewrites in self._guide.rewrites
            if (stitch := self._decoder(rewrites, forecaster).allocator.fastest()) is not None
        ]
        ratio, sd = forecaster.latency.predict(found)
        seen = [one.latency.latency_ms / self._baseline.latency_ms for one in self._measured(self._trials)]
        least = min([*(ratio - 2.0 * sd), *seen])
        if least <= worth.max_latency:
            return ""
        budget_ms, least_ms = worth.max_latency * self._baseline.latency_ms, least * self._baseline.latency_ms
        return (
            f"the latency budget of {budget_ms:.3g} ms looks out of reach: nothing in this space is expected "
            f"below {least_ms:.3g} ms; looking for the nearest point"
        )

    def _proposal(
        self,
        idea: Idea,
        forecast: Forecast,
        at: int,
        forecaster: Forecaster,
        aim: str,
        warning: str,
        *,
        gain: float,
    ) -> Proposal:
        reasons = {
            "kind": idea.kind,
            "why": idea.why(self._guide),
            "aim": aim,
            **({} if aim == "nearest" else {"expected_gain": gain}),
            "predicted_drop": float(forecast.drop[at]),
            "predicted_divergence": float(forecaster.divergence([idea.stitch])[0]),
            "predicted_bundle_bytes": int(forecast.bundle[at] * self._baseline.size_bytes),
            **self._latency_reasons(forecast.latency[at], forecast.latency_sd[at]),
        }
        candidate = self._guide.candidate(idea.stitch)
        return Proposal(
            candidate, idea.params, reasons=reasons, origin=f"guided {idea.kind}", warning=warning
        )

    def _latency_reasons(self, ratio: float, sd: float) -> dict[str, float]:
        return {
            "predicted_latency_ms": float(ratio) * self._baseline.latency_ms,
            "predicted_latency_sd_ms": float(sd) * self._baseline.latency_ms,
        }

    def _repeat(self, warning: str) -> Proposal:
        """Everything there is has been tried: repeat the last, which the loop counts and ends by."""
        last = self._trials[-1]
        return Proposal(
            last.candidate, reasons={"kind": "repeat", "why": "nothing new is left"}, warning=warning
        )

    # --- what is known ---------------------------------------------------------------------------

    @cached_property
    def _changes(self) -> dict[Rewrites, list[Change]]:
        return {
            rewrites: all_changes(self._guide, rewrites, costs) for rewrites, costs in self._costs.items()
        }

    @property
    def _weighs_bytes(self) -> bool:
        bounds = self._goals.constraints
        counted = {Objective.SIZE, Objective.STORAGE} & set(self._goals.objectives)
        return bool(counted) or bounds.max_size_bytes is not None or bounds.max_bundle_bytes is not None

    @property
    def _weighs_bundle(self) -> bool:
        """Whether bytes to save are those of the bundle, else of the deployed file."""
        bounds, objectives = self._goals.constraints, self._goals.objectives
        return Objective.STORAGE in objectives or (
            Objective.SIZE not in objectives and bounds.max_size_bytes is None
        )

    def _decoder(self, rewrites: Rewrites, forecaster: Forecaster) -> Decoder:
        prices = forecaster.latency.prices[rewrites]
        return Decoder(self._guide, rewrites, self._costs[rewrites], prices, bundle=self._weighs_bundle)

    def _forecaster(self, trials: Sequence[TrialRecord]) -> Forecaster:
        known = [
            (stitch, trial.measurement)
            for trial in trials
            if trial.state is TrialState.COMPLETE
            and trial.measurement is not None
            and (stitch := self._guide.stitch(trial.candidate)) is not None
        ]
        return Forecaster(self._guide, self._costs, self._baseline, known)

    def _worth(self, measured: Sequence[Measurement]) -> Worth:
        return Worth(self._goals, self._baseline, measured)

    def _measured(self, trials: Sequence[TrialRecord]) -> list[Measurement]:
        complete = [
            t.measurement for t in trials if t.state is TrialState.COMPLETE and t.measurement is not None
        ]
        return [one for one in complete if not one.accuracy.is_estimate]
