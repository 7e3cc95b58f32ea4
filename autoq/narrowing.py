"""Narrower float models, refitted on calibration data; snapshots of their parts are kept in the home."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from autoq.assembly.narrowing import MULTIPLES, Narrower, build_narrower, open_narrower
from autoq.assembly.output_correction import OutputCorrector
from autoq.assembly.sequential_refit import SequentialRefitter
from autoq.calibrating import Calibrator
from autoq.core.choices import Refit, Rewrites
from autoq.evaluation.clock import machine_clock
from autoq.graph.float_model import FloatModel
from autoq.graph.replay_narrowing import changed_constants
from autoq.graph.rewriting import RewriteVectors
from autoq.home import Home
from autoq.pruning.snapshot_store import SnapshotStore, snapshots_key
from autoq.search.ports import SearchListener
from autoq.variants.blas import one_blas_thread


class Refitting:
    """Narrows one float model; equal widths give equal bytes."""

    def __init__(
        self, model: FloatModel, home: Home, calibrator: Calibrator, listener: SearchListener
    ) -> None:
        """Remember where snapshots lie; they are read, or made, when the first widths come."""
        self._model, self._home = model, home
        self._calibrator, self._listener = calibrator, listener

    @cached_property
    def narrower(self) -> Narrower:
        """Snapshots of every channel group that can get narrower.

        Raises:
            UserError: The runtime refuses the model or the calibration data.
        """
        self._calibrator(self._model)
        key = snapshots_key(self._calibrator.key(self._model), {"multiples": MULTIPLES})
        store = SnapshotStore(self._home.snapshots(key))
        if (known := open_narrower(self._model, store)) is not None:
            return known
        self._listener.on_phase("widths", "ordering channels, and refitting what reads them at every width")
        with machine_clock(), one_blas_thread():
            built = build_narrower(self._model, self._calibrator.moments(self._model).get)
            store.save(built.snapshots)
        return built

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
