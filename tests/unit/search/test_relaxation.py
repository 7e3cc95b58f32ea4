from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from autoq.search.relaxation import Entries, Floats, Relaxation

N_COLUMNS, N_LIMITED = 9, 2


class Program:
    """Rows of random signs, one of them an equation, and two rows whose bounds change."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        n_rows = 5
        self.matrix = self.rng.normal(size=(n_rows, N_COLUMNS)) * (self.rng.random((n_rows, N_COLUMNS)) < 0.6)
        self.matrix[0], self.matrix[-N_LIMITED:] = 1.0, self.rng.random((N_LIMITED, N_COLUMNS))
        self.lower = np.array([3.0, *[-np.inf] * 4])
        self.upper = np.array([3.0, 0.5, 0.5, *[np.inf] * N_LIMITED])

    def build(self) -> Relaxation:
        entries = Entries()
        for row, column in self.rng.permutation(np.argwhere(self.matrix)):
            for part in (0.25, 0.75):  # what is given in parts adds up
                entries.add(int(row), int(column), part * self.matrix[row, column])
        return Relaxation(entries, self.lower, self.upper, N_COLUMNS)

    def optimum(self, goal: Floats, limits: Floats) -> float | None:
        """By another solver, from nothing."""
        upper = [*self.upper[1:-N_LIMITED], *np.minimum(limits, 100.0)]  # which is none
        found = linprog(goal, self.matrix[1:], upper, self.matrix[:1], [3.0], bounds=(0.0, 1.0))
        return float(found.fun) if found.status == 0 else None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_question_after_question_is_answered_as_from_nothing(seed: int) -> None:
    program = Program(seed)
    relaxation = program.build()
    for _ in range(12):
        goal = program.rng.normal(size=N_COLUMNS)
        limits = np.where(
            program.rng.random(N_LIMITED) < 0.3, np.inf, program.rng.uniform(0.2, 3.0, N_LIMITED)
        )
        found, optimum = relaxation.solve(goal, limits), program.optimum(goal, limits)
        assert (found is None) == (optimum is None)
        if found is None:
            continue
        assert goal @ found == pytest.approx(optimum, abs=1e-6)
        values = program.matrix @ found
        assert values[0] == pytest.approx(3.0)
        assert (values[1:] <= np.concatenate((program.upper[1:-N_LIMITED], limits)) + 1e-6).all()
        assert (found > -1e-9).all()
        assert (found < 1 + 1e-9).all()


def test_equal_questions_in_equal_order_have_equal_answers() -> None:
    answers = []
    for _ in range(2):
        program = Program(3)
        relaxation = program.build()
        goals = program.rng.normal(size=(10, N_COLUMNS))
        answers.append([relaxation.solve(goal, np.array([1.2, np.inf])) for goal in goals])
    assert all(one is not None for one in answers[0])
    np.testing.assert_array_equal(*answers)


def test_the_solver_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    relaxation = Program(0).build()
    relaxation.solve(np.ones(N_COLUMNS), np.array([0.0, 0.0]))
    assert capfd.readouterr() == ("", "")
