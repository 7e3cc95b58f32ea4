"""What is known of a model's layers besides the trials: order, share of latency, error of the usual choices.

It is found out once, while the model is at hand, and kept beside the pictures for those drawn later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from autoq.core.files import written_whole

LAYER_FACTS_FILE = "layers.json"
_FORMAT = 1


@dataclass(frozen=True)
class LayerFacts:
    """One layer; errors are None where nothing is known of its inputs."""

    name: str
    op: str
    n_params: int
    latency_share: float | None  # of the float model's kernel time, a fraction; None is unknown
    sqnr_db: Mapping[str, float | None] = field(
        default_factory=dict
    )  # by label and bits: `int8/channel/minmax w8`
    # Channel groups that the layer writes: units at full width. Nothing where a search keeps all widths.
    group_sizes: Mapping[str, int] = field(default_factory=dict)

    def width(self, widths: Mapping[str, int]) -> float:
        """Share of the layer's outputs that is left where groups have `widths`; others are at full width."""
        full = sum(self.group_sizes.values())
        kept = sum(widths.get(group, size) for group, size in self.group_sizes.items())
        return kept / full if full else 1.0


def save_layer_facts(facts: list[LayerFacts], path: Path) -> None:
    """Write the layers of a model, in the order of its graph."""
    content = {"format": _FORMAT, "layers": [asdict(layer) for layer in facts]}
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_layer_facts(path: Path) -> list[LayerFacts]:
    """Read what was written; nothing where there is no file, a damaged one, or one of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    if content.get("format") != _FORMAT:
        return []
    return [LayerFacts(**layer) for layer in content["layers"]]
