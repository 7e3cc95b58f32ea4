"""What second-order methods gain: divergence from the float model, and accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from case import Case, kl, top1_drop
from costs import at_least, at_most
from opponents import ready_made_static

from autoq.core.choices import AS_IT_IS, Choice, Precision, Rewrites
from autoq.evaluation.clock import machine_clock
from autoq.evaluation.timing import Effort, measure_latency

GLYPHS = ("resnet18", "mobilenetv2")
EFFORT = Effort(seconds=6.0, half_width=0.01)
SMOOTH = Rewrites(smooth_alpha=0.6)


def rounding(bench: Path, home: Path) -> dict[str, Any]:
    """4 and 3 bits on all layers but first and last, activations in u8."""
    rows = []
    for name in GLYPHS:
        case = Case.open(bench, name, home)
        for bits in (4, 3):
            for way in ("nearest, biases as they are", "nearest", "gptq", "adaround"):
                choice = Choice.of("int8", weight_bits=bits, calibration="mse", rounding=way.split(",")[0])
                scored = _scored(case, _inner(case, choice), corrected="as they are" not in way)
                rows.append({"model": name, "bits": bits, "way": way, **scored})
                print(_line(rows[-1]), flush=True)
    return {"rows": rows, "bars": _halved(rows, "gptq", "nearest")}


def sparsity(bench: Path, home: Path) -> dict[str, Any]:
    """Half of the weights zero and 4 bits for the rest, on all layers but first and last."""
    ways = {
        "magnitude + nearest, biases as they are": {"rounding": "nearest", "pruning": "magnitude"},
        "magnitude + nearest": {"rounding": "nearest", "pruning": "magnitude"},
        "magnitude + gptq": {"rounding": "gptq", "pruning": "magnitude"},
        "sparsegpt": {"rounding": "gptq", "pruning": "sparsegpt"},
        "sparsegpt 2:4": {"rounding": "gptq", "pruning": "sparsegpt", "pattern": "2:4"},
    }
    rows = []
    for name in GLYPHS:
        case = Case.open(bench, name, home)
        for way, fields in ways.items():
            choice = Choice.of("int8", weight_bits=4, calibration="mse", sparsity=0.5, **fields)
            scored = _scored(case, _inner(case, choice), corrected="as they are" not in way)
            rows.append({"model": name, "way": way, **scored})
            print(_line(rows[-1]), flush=True)
    return {"rows": rows, "bars": _halved(rows, "sparsegpt", "magnitude + nearest")}


def _halved(rows: list[dict[str, Any]], better: str, worse: str) -> list[dict[str, Any]]:
    """Hold one way's divergence against half of another's, with biases corrected in both."""
    bars = []
    for row in rows:
        if row["way"] == better:
            same = [r for r in rows if r["model"] == row["model"] and r.get("bits") == row.get("bits")]
            other = next(r["kl"] for r in same if r["way"] == worse)
            about = f"{row['model']}, {row.get('bits', 4)} bits, KL of {better} over {worse}"
            bars.append(at_most(about, row["kl"] / other, 0.5, ""))
    return bars


def transformer(bench: Path, home: Path) -> dict[str, Any]:
    """MiniLM: static int8 on every MatMul with and without SmoothQuant, and a mix of three formats."""
    space = {
        "version": 1,
        "layers": {"*": {"format": ["fp32", "int8"]}},
        "rewrites": {"smooth": ["off", SMOOTH.smooth_alpha]},
    }
    case = Case.open(bench, "minilm", home, space=space)
    matmuls = [layer.name for layer in case.ready.model.summary.layers if layer.is_matmul]
    plain, clipped = (
        dict.fromkeys(matmuls, Choice.of("int8", calibration=method, rounding="gptq"))
        for method in ("minmax", "mse")
    )
    candidates = {
        "static, minmax": (plain, AS_IT_IS),
        "static, mse": (clipped, AS_IT_IS),
        "static, mse, SmoothQuant": (clipped, SMOOTH),
        "mixed by hand": (mixed(matmuls), SMOOTH),
    }
    home.mkdir(parents=True, exist_ok=True)
    ready_made = ready_made_static(
        bench / "minilm.onnx", home / "ready_made.onnx", case.ready.data.calibration
    )
    artifacts = {"quantize_static, minmax": ready_made}
    for way, (choices, rewrites) in candidates.items():
        candidate = case.candidate(choices, graph=Precision.FLOAT, rewrites=rewrites)
        artifacts[way] = case.stitchers.assemble(candidate).artifact
    rows = []
    for way, artifact in artifacts.items():
        with machine_clock():
            session = case.ready.target.open(artifact)
            floats = case.ready.target.open(case.ready.model.artifact)
            agreement = case.agreement(session)
            ratio = measure_latency(session, floats, case.workbench.data.timing_feeds, EFFORT, seed=0)
        speed = ratio.log_ratio.exp()
        rows.append(
            {"way": way, "agreement": agreement, "speedup": 1 / speed.value,
             "speedup_ci": [1 / speed.high, 1 / speed.low]}
        )  # fmt: skip
        print(f"  {way}: {agreement:.4f} at {1 / speed.value:.2f}x", flush=True)
    by_way = {row["way"]: row for row in rows}
    smooth, mix = by_way["static, mse, SmoothQuant"], by_way["mixed by hand"]
    gained = smooth["agreement"] - by_way["quantize_static, minmax"]["agreement"]
    bars = [
        at_least("agreement that SmoothQuant and clipping add to ready-made static int8", gained, 0.2, ""),
        at_least("agreement of the mix", mix["agreement"], 0.94, ""),
        at_least("speed-up of the mix", mix["speedup"], 1.65, "x"),
    ]
    return {"rows": rows, "bars": bars}


def mixed(matmuls: list[str]) -> dict[str, Choice]:
    """Attention in dynamic int8, the feed-forward's way in static and its way out in blocks of weights."""
    formats = {
        "intermediate": Choice.of("int8", calibration="mse", rounding="gptq"),
        "attention": Choice.of("int8_dynamic", rounding="gptq"),
        "": Choice.of("int8_weight", granularity="block128", rounding="gptq"),
    }
    return {name: next(one for part, one in formats.items() if part in name) for name in matmuls}


def _inner(case: Case, choice: Choice) -> dict[str, Choice]:
    """The choice on all layers but first and last, which get plain 8 bits."""
    plain = Choice.of("int8", calibration="mse")
    first, *inner, last = case.layers
    return {first: plain, **dict.fromkeys(inner, choice), last: plain}


def _scored(case: Case, choices: Mapping[str, Choice], *, corrected: bool) -> dict[str, Any]:
    candidate = case.candidate(choices, graph=Precision.INT8)
    session = case.open_session(candidate) if corrected else case.open_uncorrected(candidate)
    outputs = case.outputs(session)
    session.close()
    return {"kl": float(kl(case.float_outputs, outputs).mean()), **top1_drop(case, outputs)}


def _line(row: Mapping[str, Any]) -> str:
    low, high = row["drop_ci"]
    bits = f"{row['bits']} bits " if "bits" in row else ""
    return (
        f"  {row['model']} {bits}{row['way']}: KL {row['kl']:.5f}, top-1 {row['accuracy']:.4f}, "
        f"drop {row['drop']:+.4f} [{low:+.4f}, {high:+.4f}]"
    )
