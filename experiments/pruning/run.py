"""Narrow a trained ResNet-18 without training: accuracy, and speed over float and over int8 in one run.

    python experiments/pruning/run.py BENCH_FOLDER [--only allocation] [--home DIR]

BENCH_FOLDER holds the specs, models and data. Every part prints its lines and writes them to
results.json beside this script; parts can be run one by one, on a machine that is otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from allocation import divergences, latency_shares
from subject import Finish, Subject

from autoq.core.choices import Criterion
from autoq.core.groups import ChannelGroup, Role
from autoq.pruning.allocation import allocate

SHARES = (0.75, 0.50, 0.35)
# Of the predicted latency of the unpruned int8 model.
TARGETS = [0.68, 0.62, 0.58, 0.55]
N_VECTORS, MAX_NARROW_S = 12, 0.5

Part = Callable[[Subject], Any]


def uniform(subject: Subject) -> list[dict[str, Any]]:
    """All inner channels of blocks at one share of their width, then all residual streams."""
    rows = []
    for kind, groups in kinds(subject).items():
        for share in SHARES:
            print(f"  {kind} at {share:.0%}", flush=True)
            row = subject.judge(at_share(subject, groups, share))
            rows.append({"groups": kind, "share": share, **row})
    return rows


def finishing(subject: Subject) -> list[dict[str, Any]]:
    """What mean and variance correction, or a sequential refit, adds to the snapshots."""
    rows = []
    for kind, groups in {**kinds(subject), "all": list(subject.narrower.groups)}.items():
        share = {"inner": 0.35, "streams": 0.75, "all": 0.5}[kind]
        for finish in Finish:
            print(f"  {kind} at {share:.0%}", flush=True)
            row, _ = subject.scores(at_share(subject, groups, share), finish)
            rows.append({"groups": kind, "share": share, **row})
    return rows


def criteria(subject: Subject) -> list[dict[str, Any]]:
    """Float accuracy of other orders, refitted, and of cutting alone; inner channels."""
    groups, rows = kinds(subject)["inner"], []
    for criterion in (one for one in Criterion if one is not Criterion.FISHER):  # the model is an ONNX file
        narrower = subject.narrower if criterion is Criterion.OBS else subject.by_criterion(criterion)
        for share in SHARES:
            widths = at_share(subject, groups, share)
            refitted = subject.top1(narrower.narrow(widths).artifact)
            cut = subject.top1(narrower.cut(widths).artifact)
            print(f"  {criterion} at {share:.0%}: refitted {refitted:.4f}, only cut {cut:.4f}", flush=True)
            rows.append({"criterion": criterion, "share": share, "refitted": refitted, "cut": cut})
    return rows


def allocation(subject: Subject, table: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Widths by greedy descent over all groups, on a table that `divergences` has written."""
    by_width = {name: {int(width): one for width, one in row.items()} for name, row in table.items()}
    rows = []
    for one in allocate(by_width, latency_shares(subject), TARGETS):
        print(f"  target {one.share}: {dict(one.widths)}", flush=True)
        row = {"target": one.share, "predicted": one.predicted, "widths": dict(one.widths)}
        refitted, _ = subject.scores(one.widths, Finish.REFIT)
        rows.append({**row, "snapshots": subject.judge(one.widths), "refitted": refitted})
    return rows


def new_widths(subject: Subject) -> dict[str, Any]:
    """Seconds to make the whole model at a width vector that nobody has asked for, from snapshots."""
    generator, seconds = np.random.default_rng(0), []
    for _ in range(N_VECTORS):
        widths = {name: int(generator.choice(one.widths)) for name, one in subject.narrower.snapshots.items()}
        start = time.perf_counter()
        subject.narrower.narrow(widths)
        seconds.append(time.perf_counter() - start)
    slowest = max(seconds)
    print(f"  {N_VECTORS} width vectors: median {median(seconds):.3f} s, slowest {slowest:.3f} s", flush=True)
    bar = {
        "what": "s to narrow a whole model at new widths, slowest",
        "figure": slowest,
        "bar": f"<= {MAX_NARROW_S:g}",
        "met": slowest <= MAX_NARROW_S,
    }
    return {"seconds": seconds, "bars": [bar]}


def kinds(subject: Subject) -> dict[str, list[ChannelGroup]]:
    """Groups that one layer writes and one reads, and those that an Add ties."""
    inner = [one for one in subject.narrower.groups if _n_writers(one) == 1]
    return {"inner": inner, "streams": [one for one in subject.narrower.groups if one not in inner]}


def at_share(subject: Subject, groups: list[ChannelGroup], share: float) -> dict[str, int]:
    """The width on the grid that is closest to a share, the wider of two."""
    return {
        group.name: min(
            reversed(subject.narrower.snapshots[group.name].widths),
            key=lambda width: abs(width - share * group.size),
        )
        for group in groups
    }


def _n_writers(group: ChannelGroup) -> int:
    return len({member.layer for member in group.members if member.role is Role.WRITES})


PARTS: dict[str, Part] = {
    "divergences": divergences,
    "new_widths": new_widths,
    "uniform": uniform,
    "finishing": finishing,
    "criteria": criteria,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--only", choices=[*PARTS, "allocation"], action="append")
    parser.add_argument("--home", type=Path, default=Path("autoq-home"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    subject = Subject.open(args.bench, "resnet18", args.home)
    print(f"snapshots of {len(subject.narrower.groups)} groups in {subject.snapshots_s:.1f} s", flush=True)
    whole = subject.ready.model
    results["unpruned"] = {
        "snapshots_s": subject.snapshots_s,
        "float_top1": subject.top1(whole.artifact),
        "int8_top1": subject.top1(subject.int8(whole, subject.statistics)),
    }
    print(results["unpruned"], flush=True)
    for name in args.only or [*PARTS, "allocation"]:
        print(name, flush=True)
        if name == "allocation" and "divergences" not in results:
            raise SystemExit("allocation needs the table of divergences: run that part before")
        results[name] = (
            allocation(subject, results["divergences"]) if name == "allocation" else PARTS[name](subject)
        )
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
