"""Optuna's samplers, seeded so that a resumed search draws what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from autoq.core.errors import UnknownNameError

if TYPE_CHECKING:  # importing Optuna takes half a second, and `autoq --help` needs none of it
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

POPULATION_SIZE = 16
SAMPLERS = ("tpe", "nsga2", "gp", "random")


def new_sampler(name: str, seed: int) -> BaseSampler:
    """Create a sampler.

    Raises:
        UnknownNameError: There is none of that name.
    """
    from optuna import samplers

    class NSGAIISampler(samplers.NSGAIISampler):
        """Optuna's, with parents in the order of their numbers.

        Optuna returns them ranked when it selects them and by number when it has them cached, so
        the same seed gave other children after a resume. The notes carry the class's name.
        """

        def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
            return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)

    factories: dict[str, Callable[[], BaseSampler]] = {
        # Multivariate: one split of the history per ask, not one per parameter.
        "tpe": lambda: samplers.TPESampler(multivariate=True, constant_liar=False, seed=seed),
        "nsga2": lambda: NSGAIISampler(population_size=POPULATION_SIZE, seed=seed),
        "gp": lambda: samplers.GPSampler(seed=seed, warn_independent_sampling=False),
        "random": lambda: samplers.RandomSampler(seed=seed),
    }
    if name not in factories:
        raise UnknownNameError(f"no sampler named {name!r}", hint=f"known: {', '.join(factories)}")
    return factories[name]()


def seed_of(seed: int, number: int) -> int:
    """Seed of what is drawn for one trial of a search."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


@contextmanager
def one_torch_thread(sampler: str) -> Iterator[None]:
    """Fit Gaussian processes on one thread: small matrices lose by more, and sums keep their order."""
    if sampler != "gp":
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
