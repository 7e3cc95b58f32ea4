"""What the process of a search's trials builds. A search waits for it: it imports what trials need alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoq.calibrating import SourceKeys, open_stitchers
from autoq.core.choices import Rewrites
from autoq.evaluation.output_files import OutputFiles
from autoq.evaluation.ports import Target
from autoq.evaluation.workbench import EvaluationData, EvaluationSettings, Workbench
from autoq.home import Home


@dataclass(frozen=True)
class WorkbenchFactory:
    """Everything a child process builds its workbench from; it pickles."""

    home: Home
    sources: Mapping[Rewrites, SourceKeys]
    target: Target
    data: EvaluationData
    settings: EvaluationSettings

    def __call__(self) -> Workbench:
        """Wire the workbench; models and statistics are read from the home."""
        stitchers = open_stitchers(self.home, self.sources, self.target)
        stitchers.load_all()
        return Workbench(stitchers, self.target, self.data, self.settings, OutputFiles(self.home.outputs))
