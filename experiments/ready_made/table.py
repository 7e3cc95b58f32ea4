"""Print the table of results.json as Markdown: `python experiments/ready_made/table.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def rows_of(name: str, content: dict[str, Any]) -> list[str]:
    lines = []
    for row in content["rows"]:
        low, high = row["speed_over_row_ci"]
        rival = f"{row['origin']}, {row['trial_accuracy']:.4f}"
        ratio = f"{row['speed_over_row']:.2f} [{low:.2f}, {high:.2f}]"
        figures = (f"{row['accuracy']:.4f}", f"{row['speedup']:.2f}x", f"{row['size_bytes'] / 1e6:.2f}")
        covered = "yes" if row["covered"] else "**no**"
        lines.append("| " + " | ".join((name, row["row"], *figures, rival, ratio, covered)) + " |")
    return lines


def main() -> None:
    results = json.loads((Path(__file__).parent / "results.json").read_text())
    head = (
        "model",
        "ready-made",
        "accuracy",
        "speed-up",
        "MB",
        "autoq's point",
        "its speed over the row's",
        "covered",
    )
    print("| " + " | ".join(head) + " |")
    print("| --- " * len(head) + "|")
    for name, content in results.items():
        print("\n".join(rows_of(name, content)))
    print()
    for name, content in results.items():
        overhead = content["overhead"]
        print(
            f"{name}: outside the model a trial spends {overhead['median_share']:.1%} "
            f"({overhead['median_s']:.2f} s) in the median, at most {overhead['max_share']:.1%} "
            f"({overhead['max_s']:.2f} s)"
        )


if __name__ == "__main__":
    main()
