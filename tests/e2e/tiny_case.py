"""A network small enough to be searched in seconds, its data and its spec, and the command to do so."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml

from autoq.storage.ledger import SqlLedger
from autoq.testing.models import GraphBuilder

N_CLASSES = 4
NAME = "tiny"


def tiny_network() -> onnx.ModelProto:
    net = GraphBuilder(seed=1)
    image = net.input("image", "batch", 3, 16, 16)
    x = net.node("Relu", net.conv(image, "stem", (3, 8), strides=[2, 2]))
    y = net.node("Relu", net.conv(x, "block.conv1", (8, 8)))
    x = net.node("Relu", net.node("Add", net.conv(y, "block.conv2", (8, 8)), x))
    return net.build(logits=(net.classify(x, 8, N_CLASSES), ("batch", N_CLASSES)))


def draw_images(n_images: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Noise with a tint of its own for each image, so that the classes differ."""
    tint = 1.5 * rng.standard_normal((n_images, 3, 1, 1))
    images: np.ndarray[Any, Any] = (rng.standard_normal((n_images, 3, 16, 16)) + tint).astype(np.float32)
    return images


def labels_of(
    model: onnx.ModelProto, feed: Mapping[str, Any], rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    """The float model's own answers, a tenth of them replaced at random."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    labels: np.ndarray[Any, Any] = session.run(None, dict(feed))[0].argmax(axis=1)
    wrong = rng.random(len(labels)) < 0.1
    labels[wrong] = rng.integers(0, N_CLASSES, wrong.sum())
    return labels


def tiny_data(model: onnx.ModelProto) -> dict[str, Any]:
    rng, data = np.random.default_rng(0), {}
    for split, n_images in (("calib", 16), ("search", 96), ("test", 64)):
        images = draw_images(n_images, rng)
        data |= {f"{split}_x": images, f"{split}_y": labels_of(model, {"image": images}, rng)}
    return data


def tiny_spec() -> dict[str, Any]:
    def split(name: str) -> dict[str, Any]:
        return {"npz": "data.npz", "inputs": {"image": f"{name}_x"}, "labels": f"{name}_y"}

    return {
        "version": 1,
        "name": NAME,
        "model": {"path": "tiny.onnx"},
        "data": {
            "calibration": {"npz": "data.npz", "inputs": {"image": "calib_x"}},
            "search": split("search"),
            "test": split("test"),
        },
        "metric": "top1",
        "objectives": ["accuracy", "latency", "storage"],
        "constraints": {"max_accuracy_drop": 0.2},
        "timing": {"search_s": 0.1, "final_s": 0.1},
        "space": "cnn",
        "search": {"trials": 8, "seed": 0, "strategy": "tpe"},
    }


def write_case(folder: Path, changes: Mapping[str, object] | None = None) -> Path:
    """Write model, data and spec; `changes` sets keys of the spec by their paths. Return the spec."""
    model = tiny_network()
    onnx.save(model, folder / "tiny.onnx")
    np.savez(folder / "data.npz", **tiny_data(model))
    return write_spec(folder, changes)


def write_spec(folder: Path, changes: Mapping[str, object] | None = None, *, file: str = "spec.yaml") -> Path:
    content = tiny_spec()
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
    path = folder / file
    path.write_text(yaml.safe_dump(content))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "autoq", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    """The environment without what would send stores elsewhere."""
    ours = ("AUTOQ_", "MLFLOW_")
    return {name: text for name, text in os.environ.items() if not name.startswith(ours)} | variables


def run_autoq(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(**variables), capture_output=True, text=True, timeout=240
    )


class Running:
    """A command that runs, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []

    def wait_for(self, text: str) -> None:
        """Read stderr up to the line that has a text."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if text in line:
                return
        raise AssertionError(f"ended without saying {text!r}: {''.join(self.said)}")

    def ended(self) -> tuple[int, str]:
        """Wait for the end; return exit code and stderr."""
        assert self.process.stderr is not None
        self.said += self.process.stderr
        return self.process.wait(), "".join(self.said)


@contextmanager
def started(*arguments: object, **variables: str) -> Iterator[Running]:
    """Run a command beside the test for the length of the block; one that hangs is killed."""
    with subprocess.Popen(
        command(*arguments),
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        alarm = threading.Timer(180, process.kill)
        alarm.start()
        try:
            yield Running(process)
        finally:
            alarm.cancel()
            process.kill()


@contextmanager
def ledger_of(home: Path) -> Iterator[SqlLedger]:
    ledger = SqlLedger(f"sqlite:///{home / 'autoq.db'}")
    try:
        yield ledger
    finally:
        ledger.close()
