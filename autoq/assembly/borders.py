"""Borders: the tensors between blocks that are converted where integers end or begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoq.calibration.statistics import Statistics
from autoq.graph.blocks import Block, BlockKind


@dataclass(frozen=True, slots=True)
class Border:
    """A tensor that one block writes and another reads, moves between them not counted."""

    writer: str
    reader: str
    elements: float  # of one example


def find_borders(blocks: Sequence[Block], statistics: Statistics) -> list[Border]:
    """List the tensors between layers and weightless ops, in graph order.

    Args:
        blocks: Of the model, in graph order.
        statistics: Say how large tensors are; one that they do not know counts as one element.
    """
    writers: dict[str, str] = {}
    found = []
    for block in blocks:
        if block.kind is BlockKind.MOVE:
            if (writer := writers.get(block.sources[0])) is not None:
                writers.update(dict.fromkeys(block.results, writer))
            continue
        for source in dict.fromkeys(block.sources):
            if source in writers:
                found.append(Border(writers[source], block.name, _elements(source, statistics)))
        writers.update(dict.fromkeys(block.results, block.name))
    return found


def _elements(value: str, statistics: Statistics) -> float:
    if value not in statistics.tensors:
        return 1.0
    return statistics.extent(value).n_values / max(statistics.n_examples, 1)
