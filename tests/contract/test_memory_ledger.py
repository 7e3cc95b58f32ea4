from __future__ import annotations

import pytest

from autoq.core.errors import UnknownNameError
from autoq.testing.ledger_contract import LedgerContract, example_search, example_trial
from autoq.testing.memory_ledger import InMemoryLedger


@pytest.fixture
def ledger() -> InMemoryLedger:
    return InMemoryLedger()


class TestInMemoryLedger(LedgerContract):
    pass


def test_seconds_are_replaced_and_nothing_else(ledger: InMemoryLedger) -> None:
    ledger.create_search(example_search())
    ledger.add_trial("glyphs", example_trial())
    ledger.update_trial_seconds("glyphs", 0, {"total": 2.5})
    (trial,) = ledger.load_trials("glyphs")
    assert trial.seconds == {"total": 2.5}
    assert trial.measurement == example_trial().measurement
    with pytest.raises(UnknownNameError, match="no trial 1"):
        ledger.update_trial_seconds("glyphs", 1, {})
