"""The process that trials run in, launched before anything heavy is imported or prepared."""

from __future__ import annotations

import os
from pathlib import Path

from autoq.execution.worker import ChildProcess

# What a workbench needs, and what it would otherwise import within the first trial.
_PRELOAD = ("autoq.workbench_factory", "autoq.targets.registry", "scipy.special")


def launch_trials(root: Path) -> ChildProcess[object]:
    """Return the process of a search's trials; it imports while its parent still prepares.

    Where the home does not exist yet nothing is launched: the process logs into it, and follows later.

    Args:
        root: Folder of the home.
    """
    root = root.absolute()
    child: ChildProcess[object] = ChildProcess(preload=_PRELOAD, log_path=root / "trials.log")
    if os.access(root, os.W_OK):
        child.launch()
    return child
