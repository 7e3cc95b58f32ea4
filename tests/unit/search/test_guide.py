from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from small_guides import chain, draw_stitches, layer_slot

from autoq.core.choices import AS_IT_IS, FLOAT, Candidate, Choice, Precision, Rewrites
from autoq.search.guide import ErrorProbe, Guide, LatencyProbe, Option, PerOption, Stitch

SMOOTH = Rewrites(smooth_alpha=0.5)


def whole_guide() -> Guide:
    """A guide with something in every field."""
    guide = chain(3, rewrites=(AS_IT_IS, SMOOTH), group=True)
    candidate = guide.candidate(Stitch(SMOOTH, (1, 2, 3, 1)))
    return replace(
        guide,
        fixed_ops={"softmax": Precision.FLOAT},
        float_bundle_bytes=123,
        float_size_bytes=456,
        error_probes=(ErrorProbe(AS_IT_IS, {"layer01": 2}, 0.1 + 0.2), ErrorProbe(SMOOTH, {}, float("inf"))),
        latency_probes=(LatencyProbe(candidate, 1 / 3, 0.01),),
    )


def test_figures_of_many_stitches_are_those_of_each_option() -> None:
    figures = [np.arange(3.0), np.arange(10.0, 12.0), np.arange(20.0, 24.0)]
    options = np.array([[0, 1, 3], [2, 0, 0]])
    wanted = [[one[at] for one, at in zip(figures, row, strict=True)] for row in options]
    assert PerOption(figures).of(options).tolist() == wanted


def test_bytes_of_stitches_are_the_sum_over_their_options() -> None:
    guide = whole_guide()
    stitches = [Stitch(rewrites, (1, 2, 3, 1)) for rewrites in guide.rewrites] + [
        Stitch(SMOOTH, (0, 0, 0, 0))
    ]
    wanted = [
        guide.float_bundle_bytes
        + sum(
            slot.options[at].bundle_bytes
            for slot, at in zip(guide.slots[one.rewrites], one.options, strict=True)
        )
        for one in stitches
    ]
    assert guide.bytes_of(stitches, bundle=True).tolist() == wanted


def test_a_guide_comes_back_from_json_as_it_was() -> None:
    guide = whole_guide()
    assert Guide.from_json(json.loads(json.dumps(guide.to_json()))) == guide


def test_errors_without_bound_survive_json() -> None:
    option = Option(Choice.of("int8"), "int8/channel", float("inf"), 0.5)
    assert Option.from_json(json.loads(json.dumps(option.to_json()))) == option


@pytest.mark.parametrize("seed", range(5))
def test_a_stitch_comes_back_from_its_candidate(seed: int) -> None:
    guide = whole_guide()
    for stitch in draw_stitches(guide, 20, np.random.default_rng(seed)):
        assert guide.stitch(guide.candidate(stitch)) == stitch


def test_a_candidate_says_all_of_a_stitch() -> None:
    candidate = whole_guide().candidate(Stitch(SMOOTH, (0, 1, 4, 1)))
    assert candidate == Candidate.of(
        {"layer00": FLOAT, "layer01": Choice.of("int8"), "layer02": Choice.of("int8_dynamic")},
        {"add0": Precision.INT8, "add1": Precision.INT8, "softmax": Precision.FLOAT},
        SMOOTH,
    )


def test_a_candidate_outside_the_space_has_no_stitch() -> None:
    guide = whole_guide()
    inside = guide.candidate(Stitch(AS_IT_IS, (0, 0, 0, 0)))
    assert guide.stitch(inside) is not None
    other_bits = inside.with_choice("layer01", Choice.of("int8", weight_bits=7))
    other_layer = inside.with_choice("unknown", Choice.of("int8"))
    torn = replace(inside, graph=tuple(sorted({**inside.by_op, "add1": Precision.INT8}.items())))
    other_op = replace(inside, graph=tuple(sorted({**inside.by_op, "softmax": Precision.INT8}.items())))
    rewritten = replace(inside, rewrites=Rewrites(equalize=True))
    for candidate in (other_bits, other_layer, torn, other_op, rewritten):
        assert guide.stitch(candidate) is None


@pytest.mark.parametrize("bundle", [True, False])
def test_bytes_are_those_of_every_option_and_of_the_rest(bundle: bool) -> None:
    guide = whole_guide()
    stitches = draw_stitches(guide, 20, np.random.default_rng(0))
    by_hand = [
        (123 if bundle else 456)
        + sum(
            slot.options[at].bundle_bytes if bundle else slot.options[at].size_bytes
            for slot, at in zip(guide.slots[stitch.rewrites], stitch.options, strict=True)
        )
        for stitch in stitches
    ]
    assert guide.bytes_of(stitches, bundle=bundle).tolist() == by_hand


def test_bytes_of_one_float_model_alone_and_of_nothing_are_known_too() -> None:
    guide = whole_guide()
    assert guide.bytes_of([Stitch(SMOOTH, (0, 0, 0, 0))], bundle=True).tolist() == [123 + 3 * 4_000]
    assert guide.bytes_of([], bundle=True).tolist() == []


def test_where_float_is_no_option_the_gentlest_stands_in() -> None:
    slot = layer_slot("layer")
    guide = Guide({AS_IT_IS: (replace(slot, options=slot.options[1:]), slot)}, (), {})
    # Dynamic int8 with eight bits errs least: its input has a scale of its own in every run.
    assert guide.float_options == (3, 0)


def test_a_matrix_product_reads_integers_and_writes_none() -> None:
    conv, matmul = layer_slot("conv", tie="Conv 3x3"), layer_slot("fc", tie="MatMul 8x8")
    guide = Guide({AS_IT_IS: (conv, matmul)}, (), {})
    assert guide.integer[0].tolist() == [False, True, True, True, False, False, False]
    assert not guide.integer[1].any()
