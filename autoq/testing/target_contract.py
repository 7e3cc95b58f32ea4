"""What every target must do. Subclass `TargetContract` and provide a `target` fixture."""

# ruff: noqa: D102 (a test's name is its sentence)

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import FLOAT, Choice, Format, Granularity
from autoq.core.data import Array
from autoq.core.errors import RuntimeRejectedModel
from autoq.core.layers import Layer, OpFamily
from autoq.evaluation.ports import Target, Verdict
from autoq.testing.models import attention, example_feed, gru_classifier, residual_cnn, tagger, two_headed

EXAMPLE_LAYERS = (
    Layer("conv", "Conv", (16, 8, 3, 3), channel_axis=0, has_bias=True),
    Layer("depthwise", "Conv", (16, 1, 3, 3), channel_axis=0, group=16),
    Layer("grouped", "Conv", (16, 4, 3, 3), channel_axis=0, group=2),
    Layer("up", "ConvTranspose", (16, 8, 2, 2), channel_axis=1),
    Layer("grouped_up", "ConvTranspose", (16, 4, 2, 2), channel_axis=1, group=2),
    Layer("fc", "Gemm", (10, 16), channel_axis=0, has_bias=True),
    Layer("project", "MatMul", (16, 32), channel_axis=1),
    Layer("embedding", "Gather", (100, 32), channel_axis=0),
    Layer("odd_embedding", "Gather", (100, 33), channel_axis=0),
    Layer("lstm", "LSTM", (2, 32, 20), channel_axis=1, group=2, has_bias=True),
    Layer("gru", "GRU", (1, 24, 20), channel_axis=1),
)


def example_choices() -> list[Choice]:
    """Every format with every granularity it can have, at all its widths."""
    choices = [FLOAT, Choice.of(Format.FP32, sparsity=0.5), Choice.of(Format.FP16)]
    for fmt, granularity, bits in itertools.product(Format, Granularity, range(2, 9)):
        if fmt.is_float or granularity is Granularity.NONE or bits > fmt.container_bits:
            continue
        if (granularity.block_size is not None) == fmt.is_weight_only:
            choices.append(Choice.of(fmt, weight_bits=bits, granularity=granularity))
    return choices


class TargetContract:
    """Judgements that explain themselves, and sessions that can be believed."""

    @pytest.fixture
    def model(self) -> ModelArtifact:
        return ModelArtifact.from_bytes(residual_cnn().SerializeToString())

    @pytest.fixture
    def feed(self, target: Target) -> dict[str, Array]:
        return example_feed(residual_cnn(), n_examples=target.batch_size)

    def test_every_refusal_has_a_reason(self, target: Target) -> None:
        for layer, choice in itertools.product(EXAMPLE_LAYERS, example_choices()):
            assert explains_itself(target.judge(layer, choice)), (layer.name, str(choice))
        for family in OpFamily:
            assert explains_itself(target.judge_op(family)), family

    def test_float_is_always_legal_and_native(self, target: Target) -> None:
        for layer in EXAMPLE_LAYERS:
            for choice in (FLOAT, Choice.of(Format.FP32, sparsity=0.5)):
                verdict = target.judge(layer, choice)
                assert verdict.legal
                assert verdict.native

    def test_the_environment_is_json_and_stays_the_same(self, target: Target) -> None:
        environment = target.environment()
        assert json.loads(json.dumps(environment)) == environment
        assert target.environment() == environment
        assert environment["runtime_version"]
        assert target.name
        assert target.batch_size >= 1

    def test_a_copy_that_went_to_another_process_is_the_same_target(self, target: Target) -> None:
        copy = pickle.loads(pickle.dumps(target))
        assert (copy.name, copy.batch_size) == (target.name, target.batch_size)
        assert copy.environment() == target.environment()

    def test_two_runs_of_one_input_give_the_same_bytes(
        self, target: Target, model: ModelArtifact, feed: dict[str, Array]
    ) -> None:
        session = target.open(model)
        first, second = session.run(feed), session.run(feed)
        assert first["logits"].tobytes() == second["logits"].tobytes()
        assert target.open(model).run(feed)["logits"].tobytes() == first["logits"].tobytes()

    def test_running_leaves_its_input_as_it_was(
        self, target: Target, model: ModelArtifact, feed: dict[str, Array]
    ) -> None:
        before = {name: array.copy() for name, array in feed.items()}
        target.open(model).run(feed)
        for name, array in before.items():
            np.testing.assert_array_equal(feed[name], array)

    def test_run_returns_every_output_by_name(self, target: Target) -> None:
        proto = two_headed()
        session = target.open(ModelArtifact.from_bytes(proto.SerializeToString()))
        outputs = session.run(example_feed(proto, n_examples=target.batch_size))
        shapes = {name: array.shape for name, array in outputs.items()}
        assert shapes == {"logits": (target.batch_size, 10), "embedding": (target.batch_size, 12)}

    @pytest.mark.parametrize("content", [b"hello", b"<html><body>404</body></html>"])
    def test_bytes_that_are_not_onnx_are_refused_by_name(self, target: Target, content: bytes) -> None:
        with pytest.raises(RuntimeRejectedModel, match="not an ONNX model"):
            target.open(ModelArtifact.from_bytes(content))

    def test_a_model_with_an_unknown_operator_is_refused_in_one_line(self, target: Target) -> None:
        proto = residual_cnn()
        proto.graph.node[0].op_type = "Konvolution"
        with pytest.raises(RuntimeRejectedModel, match="Konvolution") as caught:
            target.open(ModelArtifact.from_bytes(proto.SerializeToString()))
        assert "\n" not in str(caught.value)

    def test_an_input_that_does_not_fit_is_refused(self, target: Target, model: ModelArtifact) -> None:
        session = target.open(model)
        with pytest.raises(RuntimeRejectedModel):
            session.run({"image": np.zeros((target.batch_size, 5, 16, 16), np.float32)})

    def test_a_block_of_runs_takes_time(
        self, target: Target, model: ModelArtifact, feed: dict[str, Array]
    ) -> None:
        session = target.open(model)
        other = {name: array + 1 for name, array in feed.items()}
        assert session.time_block(3, [feed]) > 0.0
        assert session.time_block(3, [feed, other]) > 0.0

    @pytest.mark.parametrize("build", [residual_cnn, attention, tagger, gru_classifier])
    def test_the_optimised_float_graph_computes_what_was_written(
        self, target: Target, build: Callable[[], onnx.ModelProto]
    ) -> None:
        proto = build()
        model = ModelArtifact.from_bytes(proto.SerializeToString())
        feed = example_feed(proto, n_examples=target.batch_size)
        optimized, written = target.open(model).run(feed), target.open(model, optimize=False).run(feed)
        for name, array in written.items():
            np.testing.assert_allclose(optimized[name], array, rtol=1e-4, atol=1e-4 * np.abs(array).max())

    def test_several_threads_may_run_one_session_at_once(self, target: Target, model: ModelArtifact) -> None:
        feeds = [example_feed(residual_cnn(), n_examples=target.batch_size, seed=seed) for seed in range(8)]
        session = target.open(model)
        alone = [session.run(feed)["logits"].tobytes() for feed in feeds]
        with ThreadPoolExecutor(max_workers=4) as pool:
            together = pool.map(lambda feed: session.run(feed)["logits"].tobytes(), feeds * 10)
            assert list(together) == alone * 10

    def test_a_session_can_be_closed(
        self, target: Target, model: ModelArtifact, feed: dict[str, Array]
    ) -> None:
        first, second = target.open(model), target.open(model)
        first.close()
        assert second.run(feed)["logits"].shape == (target.batch_size, 10)


def explains_itself(verdict: Verdict) -> bool:
    """Whether a verdict that is not plainly yes says why."""
    return (verdict.legal and verdict.native) or bool(verdict.reason)
