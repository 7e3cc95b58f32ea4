"""Domains of plain blocks: no graph is needed to decide where integers flow."""

from __future__ import annotations

import pytest

from autoq.assembly.domains import Domains, Style, decide_domains
from autoq.core.choices import Calibration, Candidate, Choice, Precision
from autoq.graph.blocks import Block, BlockKind

INT8 = Choice.of("int8")
S8 = Choice.of("int8_s8", calibration="mse")


def layer(name: str, source: str, result: str, *, op: str = "Conv", tail: str | None = None) -> Block:
    return Block(name, BlockKind.LAYER, op, (source,), (result,), tail)


def add(name: str, left: str, right: str, result: str, *, op: str = "Add") -> Block:
    return Block(name, BlockKind.OP, op, (left, right), (result,))


def move(name: str, source: str, *results: str, op: str = "MaxPool") -> Block:
    return Block(name, BlockKind.MOVE, op, (source,), results)


def decide(
    blocks: list[Block], choices: dict[str, Choice], ops: dict[str, Precision] | None = None
) -> Domains:
    return decide_domains(blocks, Candidate.of(choices, ops))


def test_a_float_candidate_has_no_integers_anywhere() -> None:
    blocks = [layer("a", "x", "y"), move("pool", "y", "z"), layer("b", "z", "w", op="Gemm")]
    domains = decide(blocks, {})
    assert domains == Domains(frozenset(), frozenset(), frozenset(), {}, {})


@pytest.mark.parametrize("fmt", ["int8_dynamic", "int8_weight", "int4_weight"])
def test_formats_without_static_ranges_have_no_integers_between_layers(fmt: str) -> None:
    domains = decide([layer("a", "x", "y", op="Gemm")], {"a": Choice.of(fmt)})
    assert not domains.quantized


def test_a_static_layer_reads_and_writes_integers() -> None:
    domains = decide([layer("a", "x", "y")], {"a": INT8})
    assert domains.integer_blocks == {"a"}
    assert domains.produced == {"y"}
    assert domains.quantized == {"x", "y"}


def test_what_a_float_layer_writes_is_quantised_for_its_integer_reader_alone() -> None:
    domains = decide([layer("a", "x", "y"), layer("b", "y", "z")], {"b": INT8})
    assert domains.quantized == {"y", "z"}
    assert domains.produced == {"z"}


def test_a_move_follows_its_source_and_shares_its_scale() -> None:
    blocks = [layer("a", "x", "y"), move("pool", "y", "z"), move("flat", "z", "w", op="Flatten")]
    domains = decide(blocks, {"a": INT8})
    assert domains.integer_blocks == {"a", "pool", "flat"}
    assert domains.roots["z"] == domains.roots["w"] == "y"
    assert "z" not in domains.styles


def test_all_results_of_a_split_share_the_scale() -> None:
    domains = decide([layer("a", "x", "y"), move("cut", "y", "left", "right", op="Split")], {"a": INT8})
    assert domains.produced == {"y", "left", "right"}
    assert domains.roots["left"] == domains.roots["right"] == "y"


def test_a_move_of_floats_stays_float() -> None:
    domains = decide([move("pool", "x", "y"), layer("a", "y", "z")], {"a": INT8})
    assert "pool" not in domains.integer_blocks
    assert domains.roots["y"] == "y"


def test_a_pool_that_is_chosen_float_ends_the_integers() -> None:
    blocks = [layer("a", "x", "y"), move("pool", "y", "z"), layer("b", "z", "w")]
    domains = decide(blocks, {"a": INT8, "b": INT8}, {"pool": Precision.FLOAT})
    assert domains.integer_blocks == {"a", "b"}
    assert domains.produced == {"y", "w"}
    assert domains.roots["z"] == "z"


def test_an_int8_add_joins_an_integer_neighbour_and_takes_the_other_branch_along() -> None:
    blocks = [layer("a", "x", "y"), add("add", "y", "other", "sum")]
    domains = decide(blocks, {"a": INT8}, {"add": Precision.INT8})
    assert domains.integer_blocks == {"a", "add"}
    assert domains.quantized == {"x", "y", "other", "sum"}
    assert "other" not in domains.produced


def test_an_int8_add_between_floats_stays_float() -> None:
    blocks = [layer("a", "x", "y"), add("add", "y", "other", "sum")]
    assert not decide(blocks, {}, {"add": Precision.INT8}).quantized


def test_a_float_add_ends_the_integers() -> None:
    blocks = [layer("a", "x", "y"), add("add", "y", "x", "sum")]
    domains = decide(blocks, {"a": INT8}, {"add": Precision.FLOAT})
    assert "add" not in domains.integer_blocks
    assert "sum" not in domains.quantized


@pytest.mark.parametrize("op", ["Softmax", "MatMul"])
def test_softmax_and_products_run_in_int8_wherever_that_is_chosen(op: str) -> None:
    blocks = [add("op", "x", "y", "z", op=op)]
    assert decide(blocks, {}, {"op": Precision.INT8}).quantized == {"x", "y", "z"}


def test_a_gemm_that_only_floats_read_writes_floats() -> None:
    domains = decide([layer("fc", "x", "y", op="Gemm")], {"fc": INT8})
    assert domains.integer_blocks == {"fc"}
    assert domains.quantized == {"x"}


def test_a_gemm_that_only_floats_read_through_a_move_writes_floats() -> None:
    blocks = [layer("fc", "x", "y", op="Gemm"), move("shape", "y", "z", op="Reshape")]
    domains = decide(blocks, {"fc": INT8})
    assert domains.quantized == {"x"}
    assert "shape" not in domains.integer_blocks


def test_a_gemm_with_a_relu_writes_integers_or_the_runtime_would_fuse_a_float_gemm() -> None:
    domains = decide([layer("fc", "x", "y", op="Gemm", tail="relu")], {"fc": INT8})
    assert domains.produced == {"y"}


def test_a_gemm_writes_integers_for_an_integer_reader_behind_a_move() -> None:
    blocks = [
        layer("fc", "x", "y", op="Gemm"),
        move("shape", "y", "z", op="Reshape"),
        layer("b", "z", "w", op="Gemm"),
    ]
    domains = decide(blocks, {"fc": INT8, "b": INT8})
    assert domains.produced == {"y", "z"}


def test_a_static_matmul_reads_integers_and_writes_floats() -> None:
    domains = decide([layer("m", "x", "y", op="MatMul")], {"m": INT8})
    assert domains.quantized == {"x"}
    assert not domains.produced
    assert not domains.integer_blocks


def test_the_first_static_reader_fixes_the_range() -> None:
    blocks = [layer("a", "x", "y"), layer("b", "y", "z"), layer("c", "y", "w")]
    choices = {"a": INT8, "b": S8, "c": INT8}
    styles = decide(blocks, choices).styles
    assert styles["x"] == Style(Calibration.MINMAX, signed=False)
    assert styles["y"] == Style(Calibration.MSE, signed=True)


def test_without_a_static_reader_the_writer_fixes_the_range() -> None:
    blocks = [layer("a", "x", "y"), layer("b", "y", "z")]
    assert decide(blocks, {"a": S8}).styles["y"] == Style(Calibration.MSE, signed=True)


def test_a_reader_behind_a_move_fixes_the_range_of_the_source() -> None:
    blocks = [layer("a", "x", "y"), move("pool", "y", "z"), layer("b", "z", "w")]
    assert decide(blocks, {"a": INT8, "b": S8}).styles["y"] == Style(Calibration.MSE, signed=True)


def test_tensors_between_weightless_ops_take_the_style_of_the_first_layer() -> None:
    blocks = [layer("a", "x", "y"), add("add", "y", "other", "sum"), add("more", "sum", "x", "total")]
    ops = {"add": Precision.INT8, "more": Precision.INT8}
    styles = decide(blocks, {"a": S8}, ops).styles
    assert styles["sum"] == styles["total"] == Style(Calibration.MSE, signed=True)


def test_every_quantised_tensor_has_a_root_with_a_style() -> None:
    blocks = [
        layer("a", "x", "y"),
        move("pool", "y", "z"),
        add("add", "z", "x", "sum"),
        layer("fc", "sum", "out", op="Gemm", tail="relu"),
    ]
    domains = decide(blocks, {"a": INT8, "fc": INT8}, {"add": Precision.INT8})
    assert set(domains.roots) == set(domains.quantized)
    assert set(domains.styles) == set(domains.roots.values())
