from __future__ import annotations

from autoq.core.choices import FLOAT, Candidate, Choice, Precision, Rewrites
from autoq.guiding import profiled_candidates
from autoq.search.guide import Option, Slot


def slots_of(*names: str) -> list[Slot]:
    layer = (Option(FLOAT, "fp32"), Option(Choice.of("int8"), "int8/channel"))
    op = (Option(Precision.FLOAT, "float"), Option(Precision.INT8, "int8"))
    layers = [Slot(name, "MatMul 8x8", layer) for name in names]
    return [*layers, Slot("graph/softmax", "graph/softmax", op, ("softmax0", "softmax1"))]


def all_of(slots: list[Slot], choice: Choice, precision: Precision) -> Candidate:
    ops = {op: precision for slot in slots for op in slot.ops}
    return Candidate.of({slot.name: choice for slot in slots if slot.is_layer}, ops)


def test_a_kernel_that_no_anchor_has_is_profiled_within_the_one_of_most_integers() -> None:
    slots = slots_of("query", "key")
    anchors = [all_of(slots, choice, Precision.FLOAT) for choice in (FLOAT, Choice.of("int8"))]
    *profiled, last = profiled_candidates(anchors, slots)
    assert profiled == anchors
    assert last == all_of(slots, Choice.of("int8"), Precision.INT8)


def test_the_float_model_is_profiled_even_where_no_layer_may_be_float() -> None:
    options = tuple(Option(Choice.of(name), f"{name}/channel") for name in ("int8", "int8_dynamic"))
    slots = [Slot("query", "MatMul 8x8", options)]
    anchors = [Candidate.of({"query": choice}) for choice in (FLOAT, Choice.of("int8"))]
    assert profiled_candidates(anchors, slots) == anchors


def test_nothing_is_profiled_twice() -> None:
    slots = slots_of("query")
    float_model, integers = (
        all_of(slots, FLOAT, Precision.FLOAT),
        all_of(slots, Choice.of("int8"), Precision.INT8),
    )
    coarser = all_of(slots, Choice.of("int8", calibration="mse"), Precision.INT8)
    assert list(profiled_candidates([float_model, integers, coarser], slots)) == [float_model, integers]


def test_anchors_of_another_float_model_show_their_kernels_too() -> None:
    """Where all of them are equalised, say."""
    slots = slots_of("query")
    rewrites = Rewrites(equalize=True)
    anchors = [
        Candidate.of(one.by_layer, one.by_op, rewrites)
        for one in (all_of(slots, FLOAT, Precision.FLOAT), all_of(slots, Choice.of("int8"), Precision.INT8))
    ]
    assert profiled_candidates(anchors, slots) == anchors
