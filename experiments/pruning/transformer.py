"""What narrowing costs a sentence embedder, and how much of that a better order of its units could save.

    python experiments/pruning/transformer.py BENCH_FOLDER [--only orders] [--home DIR]

MiniLM's heads and feed-forward units, each alone, in float: refitted, and cut without a refit. Fisher scores
(Kwon et al. 2022) take gradients of a torch module with the ONNX file's weights; they estimate what the model
loses with one head gone. The order `measured` is that loss itself, of the refitted model. `trained` goes
beyond what a search does: it trains narrower models on the float model's states. What is found is kept under
`transformer` in results.json beside this script.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_encoder import INPUTS, SentenceEncoder, load_encoder
from subject import Finish, Subject

from autoq.assembly.assemble import layer_weights
from autoq.assembly.narrowing import Narrower
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Criterion, Precision
from autoq.core.data import Array, Batch, Feed, Split
from autoq.core.groups import ChannelGroup, GroupKind, Role
from autoq.graph.find_groups import map_channels
from autoq.graph.torch_gradients import DifferentiableModule, OutputLoss, torch_left_as_found
from autoq.pruning.consumers import find_consumers
from autoq.pruning.fisher import MAX_EXAMPLES, MaskGradients, collect_mask_gradients
from autoq.pruning.widths import build_snapshots
from autoq.spec.metrics import load_metric

N_SENTENCES = 500  # of the search split, that agreement is told of
N_MEASURED = 64  # of the calibration split, that the loss of a head is measured on
SHARE = 0.92  # of the units of every group: 11 of 12 heads
N_HEADS = (11, 10, 9)
UNIT_SHARES = (0.92, 0.84, 0.75)  # of the feed-forward units, with every head
TRAINED_SHARE = 0.75
N_EPOCHS, N_AT_ONCE, RATE = 6, 16, 2e-5  # larger rates end further away than they started


def orders(subject: Subject) -> list[dict[str, Any]]:
    """Agreement with one kind of unit at a share of its width, by what units are ordered by."""
    rows, gradients = [], mask_gradients(subject)
    for criterion in Criterion:
        narrower = subject.by_criterion(criterion, gradients if criterion is Criterion.FISHER else None)
        for kind in (GroupKind.CHANNELS, GroupKind.HEADS):
            widths = {one.name: closest(narrower, one) for one in narrower.groups if one.kind is kind}
            row = {
                "order": str(criterion),
                "kind": str(kind),
                "refitted": agreement(subject, narrower.narrow(widths).artifact),
                "cut": agreement(subject, narrower.cut(widths).artifact),
            }
            print("  {order} {kind}: refitted {refitted:.3f}, only cut {cut:.3f}".format(**row), flush=True)
            rows.append(row)
    return rows


def heads(subject: Subject) -> list[dict[str, Any]]:
    """Agreement with fewer heads in every layer, by scores and by the measured loss of each head."""
    best, rows = by_measured_loss(subject), []
    fisher = subject.by_criterion(Criterion.FISHER, mask_gradients(subject))
    for n_heads in N_HEADS:
        widths = dict.fromkeys(best.snapshots, n_heads)
        row: dict[str, Any] = {"heads": n_heads}
        for name, narrower in {"obs": subject.narrower, "fisher": fisher, "measured": best}.items():
            row[name] = agreement(subject, narrower.narrow(widths).artifact)
            row[f"{name}_cut"] = agreement(subject, narrower.cut(widths).artifact)
        print("  {heads} heads: obs {obs:.3f}, fisher {fisher:.3f}, measured {measured:.3f}".format(**row))
        rows.append(row)
    return rows


def units(subject: Subject) -> list[dict[str, Any]]:
    """Agreement with fewer feed-forward units in every layer, from snapshots and refitted layer by layer.

    Speeds are those of models with all products in static int8, over the unpruned one.
    """
    rows = []
    for share in UNIT_SHARES:
        widths = unit_widths(subject, share)
        nested, sequential = (subject.narrowed(widths, one) for one in (Finish.NOTHING, Finish.REFIT))
        row: dict[str, Any] = {
            "share": share,
            "widths": sorted(set(widths.values())),
            "nested": agreement(subject, nested.artifact),
            "sequential": agreement(subject, sequential.artifact),
            "over": subject.speedups(subject.int8(nested)),
        }
        told = "{share:.0%} of the units: {nested:.3f}, sequential {sequential:.3f}".format(**row)
        print(f"  {told}; int8 is {row['over']['int8']['factor']:.2f}x as fast", flush=True)
        rows.append(row)
    return rows


def trained(subject: Subject) -> dict[str, Any]:
    """Agreement after training a narrowed model on the test split, eight times what there is to calibrate."""
    widths = unit_widths(subject, TRAINED_SHARE)
    train = subject.ready.data.test
    assert train is not None
    teacher = load_encoder(subject.ready.model)
    student = load_encoder(subject.narrowed(widths)).requires_grad_()
    split = subject.ready.data.search.take(N_SENTENCES)
    wanted = subject.outputs(subject.ready.model.artifact, split)
    found = [torch_agreement(subject, student, wanted)]
    feeds = [feed for one in by_length(train) for feed in one.feeds(N_AT_ONCE)]
    adam, rng = torch.optim.Adam(student.parameters()), np.random.default_rng(0)
    for epoch in range(N_EPOCHS):
        for step, place in enumerate(rng.permutation(len(feeds))):
            adam.param_groups[0]["lr"] = RATE * (1 - (epoch + step / len(feeds)) / N_EPOCHS)
            adam.zero_grad()
            distance(student, teacher, feeds[place]).backward()
            adam.step()
        found.append(torch_agreement(subject, student, wanted))
        print(f"  {TRAINED_SHARE:.0%} of the units, epoch {epoch + 1}: {found[-1]:.3f}", flush=True)
    return {"share": TRAINED_SHARE, "sentences": train.n_examples, "agreement": found}


def distance(student: SentenceEncoder, teacher: SentenceEncoder, feed: Feed) -> torch.Tensor:
    """Relative squared error of the states of all blocks, and of the embedding as often."""
    tensors = [torch.tensor(feed[name]) for name in INPUTS]
    with torch.no_grad():
        wanted, wanted_states = teacher.with_states(*tensors)
    given, states = student.with_states(*tensors)
    pairs = zip(states, wanted_states, strict=True)
    apart = sum((one - other).square().sum() / other.square().sum() for one, other in pairs)
    return apart + len(states) * (given - wanted).square().sum(1).mean()


def by_length(split: Split) -> list[Split]:
    """Sentences of one length each, without padding."""
    [batch] = split.batches
    lengths = batch.inputs[INPUTS[1]].sum(axis=1)
    alike = [(length, batch.rows(lengths == length).inputs) for length in np.unique(lengths)]
    return [
        Split((Batch({name: array[:, :length] for name, array in inputs.items()}),))
        for length, inputs in alike
    ]


def torch_agreement(subject: Subject, encoder: SentenceEncoder, wanted: Array) -> float:
    """Agreement of a torch module with embeddings of the float model."""
    split = subject.ready.data.search.take(N_SENTENCES)
    with torch.no_grad():
        found = [encoder(*(torch.tensor(feed[name]) for name in INPUTS)).numpy() for feed in split.feeds(50)]
    return agreement_of(subject, np.concatenate(found), wanted)


def unit_widths(subject: Subject, share: float) -> dict[str, int]:
    """Feed-forward widths at a share."""
    groups = (one for one in subject.narrower.groups if one.kind is GroupKind.CHANNELS)
    return {one.name: closest(subject.narrower, one, share) for one in groups}


def mask_gradients(subject: Subject) -> MaskGradients:
    """Gradients for Fisher scores, as a search takes them of a torch factory's module."""
    model, split = subject.ready.model, subject.ready.data.calibration.take(MAX_EXAMPLES)
    encoder, loss = load_encoder(model), OutputLoss(0, 1, is_class_scores=False)
    check_equal(encoder, subject)
    groups = map_channels(model.graph).grouping.groups
    readers = {one.layer for group in groups for one in group.members if one.role is Role.READS}
    with torch_left_as_found():
        found = collect_mask_gradients(
            DifferentiableModule(encoder, INPUTS),
            model.summary.layers,
            layer_weights(model),
            readers,
            split.feeds(1),
            loss,
        )
    assert not any(found.why_none(group) for group in groups)
    return found


def check_equal(encoder: SentenceEncoder, subject: Subject) -> None:
    """Check that the module computes what the ONNX file does."""
    split = subject.ready.data.calibration.take(N_MEASURED)
    with torch.no_grad():
        found = [encoder(*(torch.tensor(feed[name]) for name in INPUTS)).numpy() for feed in split.feeds(1)]
    gap = np.abs(np.concatenate(found) - subject.outputs(subject.ready.model.artifact, split)).max()
    print(f"  torch and ONNX are {gap:.1e} apart", flush=True)
    assert gap < 1e-4


def by_measured_loss(subject: Subject) -> Narrower:
    """Order the heads of each layer by what the whole model's output loses with one of them gone."""
    model = subject.ready.model
    channels, weights = map_channels(model.graph), layer_weights(model)
    layers = {layer.name: layer for layer in model.summary.layers}
    split = subject.ready.data.calibration.take(N_MEASURED)
    wanted, snapshots = subject.outputs(model.artifact, split), {}
    for group in channels.grouping.groups:
        if group.kind is not GroupKind.HEADS:
            continue
        consumers = find_consumers(group, layers, weights, subject.moments.get)
        losses = []
        for unit in range(group.size):
            rest = [one for one in range(group.size) if one != unit]
            built = build_snapshots(group, consumers, np.array([unit, *rest]), [group.size - 1, group.size])
            narrowed = Narrower(model, channels, {group.name: built}).narrow({group.name: group.size - 1})
            losses.append(np.square(subject.outputs(narrowed.artifact, split) - wanted).sum(axis=1).mean())
        widths = subject.narrower.snapshots[group.name].widths
        snapshots[group.name] = build_snapshots(group, consumers, np.argsort(losses), list(widths))
    return Narrower(model, channels, snapshots)


def closest(narrower: Narrower, group: ChannelGroup, share: float = SHARE) -> int:
    """The width on the grid that is closest to a share."""
    return min(narrower.snapshots[group.name].widths, key=lambda width: abs(width - share * group.size))


def agreement(subject: Subject, artifact: ModelArtifact) -> float:
    """Nearest-neighbour agreement with the float model."""
    split = subject.ready.data.search.take(N_SENTENCES)
    found, wanted = (subject.outputs(one, split) for one in (artifact, subject.ready.model.artifact))
    return agreement_of(subject, found, wanted)


def agreement_of(subject: Subject, *embeddings: Array) -> float:
    """Agreement of embeddings with those of the float model."""
    found, wanted = ({subject.ready.output: one.astype(np.float32)} for one in embeddings)
    return float(np.mean(load_metric(subject.ready.spec.metric).load()(found, wanted, None)))


PARTS: dict[str, Callable[[Subject], Any]] = {
    "orders": orders,
    "heads": heads,
    "units": units,
    "trained": trained,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--home", type=Path, default=Path("autoq-home"))
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    args = parser.parse_args()
    subject = Subject.open(args.bench, "minilm", args.home, Precision.FLOAT)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.only or PARTS:
        results.setdefault("transformer", {})[name] = PARTS[name](subject)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
