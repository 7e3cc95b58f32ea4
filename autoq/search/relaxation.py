"""A linear program that is solved again and again with another goal and other bounds on its last rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import highspy
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass
class Entries:
    """Coefficients of a sparse matrix, in any order; those of one place add up."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, row: int, column: int, value: float) -> None:
        """Note one coefficient."""
        self.rows.append(row)
        self.columns.append(column)
        self.values.append(float(value))

    def by_column(
        self, n_rows: int, n_columns: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Floats]:
        """Return where each column starts, the rows of its coefficients, and these."""
        places = np.array(self.columns, np.int64) * n_rows + np.array(self.rows, np.int64)
        distinct, where = np.unique(places, return_inverse=True)
        values = np.bincount(where, np.array(self.values), len(distinct)).astype(np.float64)
        starts = np.searchsorted(distinct, np.arange(n_columns + 1) * n_rows)
        return starts.astype(np.int32), (distinct % n_rows).astype(np.int32), values


class _Silent(highspy.Highs):
    """A solver that does not greet on standard output, where one JSON object may have to go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def enableCallbacks(self) -> None:
        self.silent()
        super().enableCallbacks()  # type: ignore[no-untyped-call]


class Relaxation:
    """min goal·x over x in [0, 1], lower ≤ Ax ≤ upper. Each solution starts from where the last stood.

    Which of several optima is found may therefore depend on what was asked before: equal questions in
    equal order have equal answers.
    """

    def __init__(self, entries: Entries, lower: Floats, upper: Floats, n_columns: int) -> None:
        """Lay the program out; infinite bounds are none."""
        starts, rows, values = entries.by_column(len(lower), n_columns)
        program = highspy.HighsLp()
        program.num_row_, program.num_col_ = len(lower), n_columns
        program.row_lower_, program.row_upper_ = lower, upper
        program.col_cost_ = np.zeros(n_columns)
        program.col_lower_, program.col_upper_ = np.zeros(n_columns), np.ones(n_columns)
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_, program.a_matrix_.index_, program.a_matrix_.value_ = starts, rows, values
        self._solver = _Silent()
        # Presolving takes longer than what is left to do after a change of bounds, and forgets the basis.
        self._solver.setOptionValue("presolve", "off")
        self._solver.setOptionValue("threads", 1)
        self._solver.passModel(program)
        self._columns = np.arange(n_columns, dtype=np.int32)
        self._n_rows = len(lower)

    def solve(self, goal: Floats, limits: Floats) -> Floats | None:
        """Minimise a goal with other upper bounds on the last rows; None where no x keeps to the bounds.

        Raises:
            ValueError: The goal is not finite, or a limit is NaN: the solver would go on with what it had.
        """
        if not np.isfinite(goal).all() or np.isnan(limits).any():
            raise ValueError("what is asked of the allocation is not finite")
        self._solver.changeColsCost(len(self._columns), self._columns, goal)
        for row, limit in enumerate(limits, self._n_rows - len(limits)):
            self._solver.changeRowBounds(row, -np.inf, float(limit))
        self._solver.run()
        if self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return np.array(self._solver.getSolution().col_value)
