"""Narrower float models, refitted on calibration data; snapshots of their parts are kept in the home."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import numpy as np

from autoq.assembly.narrowing import MULTIPLES, Narrower, build_narrower, open_narrower
from autoq.assembly.output_correction import OutputCorrector
from autoq.assembly.sequential_refit import SequentialRefitter
from autoq.calibrating import Calibrator
from autoq.core.choices import Refit, Rewrites
from autoq.core.groups import Role
from autoq.evaluation.clock import machine_clock
from autoq.graph.find_groups import find_groups
from autoq.graph.float_model import FloatModel
from autoq.graph.replay_narrowing import changed_constants
from autoq.graph.rewriting import RewriteVectors
from autoq.home import Home
from autoq.pruning.fisher import MaskGradients
from autoq.pruning.snapshot_store import SnapshotStore, snapshots_key
from autoq.scoring import Scoring
from autoq.search.ports import SearchListener
from autoq.variants.blas import one_blas_thread


class Refitting:
    """Narrows one float model; equal widths give equal bytes."""

    def __init__(
        self,
        model: FloatModel,
        home: Home,
        calibrator: Calibrator,
        listener: SearchListener,
        scoring: Scoring | None = None,
    ) -> None:
        """Remember where snapshots lie; they are read, or made, when the first widths come."""
        self._model, self._home, self._scoring = model, home, scoring or Scoring()
        self._calibrator, self._listener = calibrator, listener

    @cached_property
    def narrower(self) -> Narrower:
        """Snapshots of every channel group that can get narrower.

        Raises:
            UserError: The runtime refuses the model or the calibration data.
        """
        self._calibrator(self._model)
        settings = {"multiples": MULTIPLES, **self._scoring.settings}
        key = snapshots_key(self._calibrator.key(self._model), settings)
        store = SnapshotStore(self._home.snapshots(key))
        if (known := open_narrower(self._model, store)) is not None:
            return known
        self._listener.on_phase("widths", "ordering channels, and refitting what reads them at every width")
        with machine_clock(), one_blas_thread():
            gradients = self._gradients()
            built = build_narrower(
                self._model,
                self._calibrator.moments(self._model).get,
                criterion=self._scoring.criterion,
                gradients=gradients,
            )
            store.save(built.snapshots)
        if gradients is not None:
            self._tell_of_others(built, gradients)
        return built

    def _gradients(self) -> MaskGradients | None:
        groups = find_groups(self._model.graph).groups
        readers = {one.layer for group in groups for one in group.members if one.role is Role.READS}
        return self._scoring.gradients(self._model, readers, self._calibrator.calibration)

    def _tell_of_others(self, built: Narrower, gradients: MaskGradients) -> None:
        """Say how many groups Fisher scores could not order, and why."""
        why = Counter(reason for group in built.groups if (reason := gradients.why_none(group)))
        if why:
            reasons = "; ".join(f"{reason} ({n})" for reason, n in why.items())
            self._listener.on_note(
                f"widths: {why.total()} of {len(built.groups)} channel groups are ordered by OBS, "
                f"not by Fisher scores: {reasons}"
            )

    def narrow(self, model: FloatModel, rewrites: Rewrites) -> RewriteVectors:
        """Say what to keep and what to put in the place of the rest.

        From snapshots, outputs are corrected; a sequential refit makes up for more than their mean and
        variance, and a correction after it was found to take some of that back.

        Args:
            model: The one this was made for.
            rewrites: With widths on the grid of the snapshots.

        Raises:
            UnknownNameError: A group is not known, or has no such width.
            UserError: The runtime refuses the model or the calibration data.
        """
        if model.summary.digest != self._model.summary.digest:
            raise ValueError("asked to narrow another model")
        if (rewrites.criterion, rewrites.loss) != (self._scoring.criterion, self._scoring.loss_name):
            raise ValueError("asked to narrow by another criterion")
        wanted, narrower = dict(rewrites.widths), self.narrower
        is_sequential = rewrites.refit is Refit.SEQUENTIAL
        how = " layer by layer" if is_sequential else ""
        self._listener.on_phase("widths", f"refitting a model with {len(wanted)} narrow channel groups{how}")
        finish = self._refitter.refit if is_sequential else self._corrector.correct
        with machine_clock(), one_blas_thread():
            refitted = finish(narrower.narrow(wanted), narrower.kept_outputs(wanted))
            constants = changed_constants(narrower.cut(wanted).graph, refitted.graph)
        kept = {name: np.array(units, np.int64) for name, units in narrower.kept(wanted).items()}
        return RewriteVectors(kept=kept, constants=constants)

    @cached_property
    def _refitter(self) -> SequentialRefitter:
        return SequentialRefitter(self._model, self._calibrator.calibration)

    @cached_property
    def _corrector(self) -> OutputCorrector:
        return OutputCorrector(self._model, self._calibrator.calibration)
