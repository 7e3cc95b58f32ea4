"""Train the digits network and write what the search needs: `data/digits.onnx` and `data/digits.npz`.

    python experiments/digits/train.py

The images are scikit-learn's handwritten digits, scaled from 8x8 to 32x32. Only the training images are
shifted and rotated; those of the search and test splits stay as they were drawn.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from model import DigitsNet
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
DATA = Path(__file__).parent / "data"

IMAGE_SIZE = 32
N_SEARCH, N_TEST, N_CALIBRATION = 700, 700, 128  # training takes the other 397 images

EPOCHS = 15
BATCH_SIZE = 32
PEAK_LEARNING_RATE = 4e-3
MAX_ROTATION = math.radians(15)
MAX_SHIFT = 0.15  # of half the image's width


@dataclass(frozen=True)
class Labelled:
    """Raw images, uint8 (n, 1, 32, 32), and the digits on them, int64 (n,)."""

    images: Tensor
    digits: Tensor

    def rows(self, rows: slice) -> Labelled:
        return Labelled(self.images[rows], self.digits[rows])


def load_images() -> Labelled:
    """Read all 1,797 images in a shuffled order that never changes."""
    source = load_digits()
    order = np.random.default_rng(SEED).permutation(len(source.target))
    small = torch.from_numpy(source.images[order, None]).float() * (255 / 16)
    large = functional.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic")
    return Labelled(large.round().clamp(0, 255).byte(), torch.from_numpy(source.target[order]))


def normalize(images: Tensor) -> Tensor:
    """Map 0..255 to [-1, 1]; the search spec's `transform` says the same."""
    return images.float() / 127.5 - 1


def augment(images: Tensor) -> Tensor:
    """Rotate and shift every image by amounts of its own."""
    n_images = len(images)
    angle = (torch.rand(n_images) * 2 - 1) * MAX_ROTATION
    shift = (torch.rand(n_images, 2) * 2 - 1) * MAX_SHIFT
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # The background is -1, and grid_sample fills with 0.
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def train(data: Labelled) -> DigitsNet:
    """Train from scratch on augmented copies of the images."""
    torch.manual_seed(SEED)
    model = DigitsNet().to(memory_format=torch.channels_last)  # trains a third faster
    images = normalize(data.images)
    n_batches = len(images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * n_batches
    )
    for epoch in range(EPOCHS):
        losses = []
        for rows in torch.randperm(len(images))[: n_batches * BATCH_SIZE].view(-1, BATCH_SIZE):
            logits = model(augment(images[rows]))
            loss = nn.functional.cross_entropy(logits, data.digits[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:2d}/{EPOCHS}: loss {np.mean(losses):.3f}", flush=True)
    return model.to(memory_format=torch.contiguous_format).eval()


@torch.inference_mode()
def top1(model: DigitsNet, data: Labelled) -> float:
    """Return the share of images whose digit is recognised."""
    return (model(normalize(data.images)).argmax(1) == data.digits).float().mean().item()


def export(model: DigitsNet, path: Path) -> None:
    """Write the model as ONNX with a dynamic batch axis; the file appears only when it is complete."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own internals
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    for node in program.model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # paths of this machine
    unfinished = path.with_suffix(".part")
    program.save(unfinished)
    unfinished.replace(path)


def main() -> None:
    """Train, write the splits, then the model."""
    # Sums depend on the number of threads; and a second one spins when another program wants its core.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images = load_images()
    search, test = images.rows(slice(0, N_SEARCH)), images.rows(slice(N_SEARCH, N_SEARCH + N_TEST))
    training = images.rows(slice(N_SEARCH + N_TEST, None))
    started = time.perf_counter()
    model = train(training)
    print(
        f"trained in {time.perf_counter() - started:.0f} s: "
        f"search {top1(model, search):.4f}, test {top1(model, test):.4f}"
    )
    DATA.mkdir(exist_ok=True)
    np.savez_compressed(
        DATA / "digits.npz",
        calib_x=training.images[:N_CALIBRATION].numpy(),
        search_x=search.images.numpy(),
        search_y=search.digits.numpy(),
        test_x=test.images.numpy(),
        test_y=test.digits.numpy(),
    )
    export(model, DATA / "digits.onnx")


if __name__ == "__main__":
    main()
