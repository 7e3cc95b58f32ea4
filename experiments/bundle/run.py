"""Measure storage bundles: size, time to pack and to restore, and the estimate a search goes by.

    python experiments/bundle/run.py BENCH_FOLDER [--only minilm] [--home DIR]

BENCH_FOLDER holds the specs, models and data. Candidates are built by hand, all inner layers alike; a
search finds better ones. Rows are printed and written to results.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "engine"))  # case, costs

from case import Case
from costs import at_least, at_most

from autoq.core.choices import Candidate, Choice, Precision
from autoq.core.coders import Coder
from autoq.core.packing import CHUNK_BYTES, unpack
from autoq.core.transforms import Transform, split
from autoq.evaluation.clock import machine_clock
from autoq.export.bundle import BundleFormat, unbundle, write_bundle

# Model: how much smaller than the float file, and the least of the metric (None: a point below float's).
BARS: dict[str, tuple[float, float | None]] = {
    "resnet18": (10.0, None),
    "mobilenetv2": (6.0, None),
    "minilm": (5.0, 0.93),
}
SPARSE = {"sparsity": 0.5, "pruning": "sparsegpt"}
CNN_CHOICES = {
    "int8": {},
    "4 bits": {"weight_bits": 4, "rounding": "gptq"},
    "4 bits, half zero": {"weight_bits": 4, "rounding": "gptq", **SPARSE},
    "3 bits of a codebook": {"weight_bits": 3, "rounding": "gptq", "grid": "codebook"},
}
# Bits of products and of embeddings, both in blocks: half of MiniLM's bytes are its embedding.
MINILM_BITS = {"7 and 6 bits": (7, 6), "6 and 6 bits": (6, 6), "6 and 5 bits": (6, 5), "5 and 5 bits": (5, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--only", choices=BARS)
    parser.add_argument("--home", type=Path, default=Path("autoq-home"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in [args.only] if args.only else BARS:
        results[name] = measure_model(Case.open(args.bench, name, args.home), name)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    results["coders"] = coder_speeds()
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def measure_model(case: Case, name: str) -> dict[str, Any]:
    """Every candidate in every format."""
    print(name, flush=True)
    float_bytes = case.ready.model.artifact.size_bytes
    float_score = case.agreement(case.ready.target.open(case.ready.model.artifact))
    rows = []
    for way, candidate in candidates_of(case, name):
        built = case.stitchers.assemble(candidate)
        row: dict[str, Any] = {"way": way, "size_bytes": built.artifact.size_bytes}
        session = case.ready.target.open(built.artifact)
        row["score"] = case.agreement(session)
        session.close()
        with machine_clock():
            row["formats"] = {str(one): measure_format(built.artifact, one) for one in BundleFormat}
        written = row["formats"]["native"]["bytes"]
        row |= {"ratio": float_bytes / written, "estimate_error": built.bundle_bytes / written - 1.0}
        rows.append(row)
        print(
            f"  {way}: {row['score']:.4f} (float {float_score:.4f}), {row['ratio']:.2f}x, estimate "
            f"{row['estimate_error']:+.2%}, " + json.dumps(row["formats"]),
            flush=True,
        )
    ratio, least = BARS[name]
    least = float_score - 0.01 if least is None else least
    best = max((row["ratio"] for row in rows if row["score"] >= least), default=0.0)
    worst = max(abs(row["estimate_error"]) for row in rows)
    return {
        "float_score": float_score,
        "rows": rows,
        "bars": [
            at_least(f"times smaller than float at {least:.4f} or better", best, ratio, "x"),
            at_most("error of the estimate", worst, 0.03, ""),
        ],
    }


def candidates_of(case: Case, name: str) -> Iterator[tuple[str, Candidate]]:
    """Candidates by what was done to them."""
    if name != "minilm":
        first, *inner, last = case.layers
        plain = Choice.of("int8", calibration="mse")
        for way, fields in CNN_CHOICES.items():
            choice = Choice.of("int8", calibration="mse", **fields)
            choices = {first: plain, **dict.fromkeys(inner, choice), last: plain}
            yield way, case.candidate(choices, graph=Precision.INT8)
        return
    for way, (bits, lookup_bits) in MINILM_BITS.items():
        blocks = {"granularity": "block128"}
        product = Choice.of("int8_weight", weight_bits=bits, rounding="gptq", **blocks)
        lookup = Choice.of("int8_weight", weight_bits=lookup_bits, **blocks)
        layers = case.ready.model.summary.layers
        choices = {layer.name: lookup if layer.op == "Gather" else product for layer in layers}
        yield way, case.candidate(choices, graph=Precision.FLOAT)


def measure_format(artifact: Any, bundle_format: BundleFormat) -> dict[str, float]:
    """Bytes, seconds to pack (which includes a check) and to restore."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / bundle_format.file_name, Path(folder) / "out.onnx"
        packing_s = timed(lambda: write_bundle(artifact, path, bundle_format))
        loading_s = timed(lambda: unbundle(path, out))
        size = out.stat().st_size
        return {
            "bytes": path.stat().st_size,
            "packing_s": packing_s,
            "loading_s": loading_s,
            "loading_mb_s": size / 1e6 / loading_s,
        }


def coder_speeds() -> dict[str, Any]:
    """MB of restored model a second, for a grid of 4 bits that is stored two values a byte, and one of 8."""
    rng = np.random.default_rng(0)
    rows = []
    for bits, transform in ((4, Transform.NIBBLES), (8, Transform.PLAIN)):
        top = 2 ** (bits - 1) - 1
        size = CHUNK_BYTES * 8 // bits
        grid = np.clip(np.rint(rng.standard_normal(size) * top / 3), -top, top).astype(np.int8)
        stream = grid.view(np.uint8) & (2**bits - 1)
        content = stream if bits == 8 else (stream[0::2] | (stream[1::2] << 4)).astype(np.uint8)
        for coder in (Coder.ZSTD, Coder.LZMA, Coder.ANS):
            record = record_by(content, transform, coder)
            best = min(timed(lambda record=record: unpack(record, CHUNK_BYTES)) for _ in range(20))
            speed = CHUNK_BYTES / 1e6 / best
            rows.append({"bits": bits, "coder": coder.name, "bytes": len(record), "restored_mb_s": speed})
            print(f"  {bits} bits, {coder.name}: {len(record):,} bytes, {speed:.0f} MB/s", flush=True)
    slowest = min(row["restored_mb_s"] for row in rows if row["coder"] == "ZSTD")
    return {"rows": rows, "bars": [at_least("MB/s of restored model, zstd", slowest, 150.0, "")]}


def record_by(content: Any, transform: Transform, coder: Coder) -> bytes:
    """A record by one coder, whichever is smallest."""
    from autoq.core import coders, packing

    (stream,) = split(transform, content)
    stored = dict(coders._fast(stream) + coders._slow(stream))[coder]
    head = packing._HEAD.pack(transform, 1) + packing._STREAM.pack(coder, stream.size, len(stored))
    return head + stored


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
