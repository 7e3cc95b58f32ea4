"""Whether the runtime computes what the model says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoq.core.artifacts import ModelArtifact
from autoq.core.data import Array, Feed
from autoq.core.errors import UnfaithfulModel
from autoq.evaluation.ports import Session, Target

# Optimised integer kernels round where the graph as written computes in float: a value on the other side
# of a rounding edge moves by one step, and later layers carry that on. Some kernels of weight-only
# formats quantise activations too. Of the change that compressing makes, that was measured to be a
# share of 0.03 to 0.4 (static int8, a ResNet-18 and a MiniLM), 0.3 (dynamic) and up to 0.6 (weight-only
# int8). A model that lies closer to what was written than that lies to the float model is let pass.
MAX_SHARE_OF_QUANTIZATION = 1.0
# Float kernels sum in another order and fuse: about 1e-6 of the output, more in deep models.
MAX_SHARE_OF_OUTPUT = 1e-3


def check_faithful(
    target: Target, model: ModelArtifact, float_session: Session, feeds: Sequence[Feed]
) -> None:
    """Compare a model as the target runs it with the same graph unoptimised.

    For every float output the change that optimising makes (root mean square over all feeds) may be at
    most the change that compressing makes, or a thousandth of the float model's output if that is more.
    So a model that is float but for a few layers is held to a strict account, and a coarse one is not:
    accuracy is measured on the optimised model in any case.

    Args:
        target: Opens the model both ways.
        model: The candidate.
        float_session: The baseline, opened.
        feeds: A few inputs.

    Raises:
        UnfaithfulModel: The optimised graph computes something else.
        RuntimeRejectedModel: The target cannot run the graph as written.
    """
    optimized, written = (_outputs(target, model, feeds, optimize=optimize) for optimize in (True, False))
    reference = [float_session.run(feed) for feed in feeds]
    for name in written[0]:
        if written[0][name].dtype.kind != "f":
            continue
        runtime, compressed, plain = (_flat(run, name) for run in (optimized, written, reference))
        if not len(runtime) == len(compressed) == len(plain):
            continue  # its length depends on the data, there is nothing to hold side by side
        change, allowed = _rms(_difference(runtime, compressed)), allowed_change(compressed, plain)
        if not change <= allowed:  # NaN is not
            raise UnfaithfulModel(
                f"optimised by the runtime, output {name!r} changes by {change:.3g} (root mean square), "
                f"expected at most {allowed:.3g}"
            )


def allowed_change(compressed: Array, plain: Array) -> float:
    """Return the largest root mean square change that counts as rounding."""
    known = np.isfinite(plain) & np.isfinite(compressed)  # a class that is ruled out has no size
    plain = plain[known]
    quantization = _rms(compressed[known] - plain)
    return max(MAX_SHARE_OF_QUANTIZATION * quantization, MAX_SHARE_OF_OUTPUT * _rms(plain))


def _outputs(
    target: Target, model: ModelArtifact, feeds: Sequence[Feed], *, optimize: bool
) -> list[dict[str, Array]]:
    session = target.open(model, optimize=optimize)
    try:
        return [session.run(feed) for feed in feeds]
    finally:
        session.close()


def _flat(runs: Sequence[dict[str, Array]], name: str) -> Array:
    return np.concatenate([run[name].reshape(-1) for run in runs]).astype(np.float64)


def _difference(a: Array, b: Array) -> Array:
    """Subtract; infinities are no different from themselves."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, a - b)


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0
