"""Print results.json as Markdown: `python experiments/engine/table.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def bars_of(content: Any, where: str) -> Iterator[str]:
    """Every bar in a part of the results, as a row."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key == "bars":
                yield from (row(where, bar) for bar in value)
            else:
                yield from bars_of(value, where)


def row(where: str, bar: Mapping[str, Any]) -> str:
    """One bar."""
    figure = f"{bar['figure']:.3g}"
    return f"| {where} | {bar['what']} | {figure} | {bar['bar']} | {'met' if bar['met'] else '**missed**'} |"


def accuracy_rows(results: Mapping[str, Any]) -> Iterator[str]:
    """Every way of rounding and pruning."""
    for part in ("rounding", "sparsity"):
        for one in results.get(part, {}).get("rows", []):
            low, high = one["drop_ci"]
            bits = one.get("bits", "4, half zero")
            figures = (
                f"{one['kl']:.4f} | {one['accuracy']:.4f} | {one['drop']:+.4f} [{low:+.4f}, {high:+.4f}]"
            )
            yield f"| {one['model']} | {bits} | {one['way']} | {figures} |"


def transformer_rows(results: Mapping[str, Any]) -> Iterator[str]:
    """Every treatment of MiniLM."""
    for one in results.get("transformer", {}).get("rows", []):
        low, high = one["speedup_ci"]
        yield f"| {one['way']} | {one['agreement']:.4f} | {one['speedup']:.2f} [{low:.2f}, {high:.2f}] |"


def main() -> None:
    results = json.loads((Path(__file__).parent / "results.json").read_text())
    print("| part | what | figure | bar | |\n| --- | --- | --- | --- | --- |")
    for part, content in results.items():
        print("\n".join(bars_of(content, part)))
    print("\n| model | bits | way | KL | top-1 | drop |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(accuracy_rows(results)))
    print("\n| MiniLM | agreement | speed-up |\n| --- | --- | --- |")
    print("\n".join(transformer_rows(results)))


if __name__ == "__main__":
    main()
