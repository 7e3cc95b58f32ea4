from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import yaml

from autoq.core.choices import Candidate, Choice, Precision
from autoq.core.measurements import Accuracy
from autoq.search.records import SearchRecord, TrialRecord, TrialState
from autoq.tracking import run_content

MakeTrial = Callable[..., TrialRecord]


def test_a_trial_is_named_by_its_change_its_speedup_and_its_formats(
    record: SearchRecord, make_trial: MakeTrial
) -> None:
    assert run_content.trial_name(record, make_trial(12)) == "t012 −0.3 pt 4.0x int8+fp32"


def test_a_better_trial_is_named_with_a_plus_and_an_equal_one_too(
    record: SearchRecord, make_trial: MakeTrial
) -> None:
    assert "+0.2 pt" in run_content.trial_name(record, make_trial(0, drop=-0.002))
    assert "+0.0 pt" in run_content.trial_name(record, make_trial(0, drop=0.0002))


def test_a_failed_trial_is_named_as_failed(record: SearchRecord, make_trial: MakeTrial) -> None:
    failed = replace(make_trial(3), state=TrialState.FAILED, measurement=None)
    assert run_content.trial_name(record, failed) == "t003 failed int8+fp32"


def test_a_metric_of_the_users_is_named_with_its_value_not_in_points(record: SearchRecord) -> None:
    spec = {**record.spec, "metric": {"python": "metrics.py:perplexity"}}
    assert run_content.score_text(spec, Accuracy(13.25, 1.25, None, 10)) == "perplexity 13.25"


def test_an_op_cannot_shadow_a_layer_of_its_name() -> None:
    candidate = Candidate.of({"add": Choice.of("int8")}, {"add": Precision.FLOAT})
    assert run_content.trial_params(candidate) == {"add": "int8/channel/minmax", "graph/add": "float"}


def test_long_names_that_differ_at_their_end_stay_different_within_mlflows_limit() -> None:
    names = ["block." * 60 + end for end in ("a", "b")]
    params = run_content.trial_params(Candidate.of({name: Choice.of("int8") for name in names}))
    assert len(params) == 2
    assert max(map(len, params)) <= run_content.MAX_KEY_LENGTH


def test_a_metric_without_an_interval_has_no_ends(make_trial: MakeTrial) -> None:
    without = run_content.trial_metrics(make_trial(0, interval=False))
    assert "accuracy_drop_lo" not in without
    assert run_content.trial_metrics(make_trial(0))["accuracy_drop_lo"] == pytest.approx(-0.001)


def test_the_times_of_the_trial_and_of_its_measurement_are_all_there(make_trial: MakeTrial) -> None:
    metrics = run_content.trial_metrics(make_trial(0))
    times = {name: value for name, value in metrics.items() if name.startswith("seconds/")}
    assert times == {"seconds/suggest": 0.01, "seconds/build": 0.2, "seconds/latency": 1.5}


def test_a_long_reason_is_cut_to_mlflows_limit(record: SearchRecord, make_trial: MakeTrial) -> None:
    failed = replace(make_trial(0), state=TrialState.FAILED, measurement=None, reason="x" * 20_000)
    tags = run_content.trial_tags(record, failed, feasible=False)
    assert len(tags["failure"]) == run_content.MAX_TAG_LENGTH
    assert tags["failure"].startswith("xxx")


def test_the_parent_carries_the_environment_and_only_the_bounds_that_are_set(record: SearchRecord) -> None:
    tags = run_content.search_tags(record)
    assert tags["env.cpu.instruction_sets"] == "avx2, vnni"
    assert tags["env.cpu.model"] == "Xeon"
    assert tags["env.threads"] == "1"
    assert tags["constraints"] == '{"max_accuracy_drop":0.02,"max_latency_ms":5.0}'


def test_the_spec_reads_back_from_its_yaml(record: SearchRecord) -> None:
    spec = {**record.spec, "bounds": (0, 1), "precision": Precision.INT8}
    read = yaml.safe_load(run_content.spec_text(record.but(spec=spec)))
    assert read == {**record.spec, "bounds": [0, 1], "precision": "int8"}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"path": "/a/b/resnet 18.v2.onnx"}, "autoq/resnet.18.v2"),
        ({"torch": "zoo.vision:mobilenet"}, "autoq/mobilenet"),
        ({"torch": "/home/ada/nets.py:make"}, "autoq/make"),
    ],
)
def test_an_experiment_is_named_after_the_model_alone(
    record: SearchRecord, model: dict[str, str], name: str
) -> None:
    assert run_content.experiment_name(record.but(spec={**record.spec, "model": model})) == name


def test_the_reason_of_a_trial_is_what_the_strategy_noted_else_its_origin(make_trial: MakeTrial) -> None:
    trial = make_trial(0, origin="anchor int8")
    assert run_content.reason_text(trial) == "anchor int8"
    object.__setattr__(trial, "reasons", {"budget": 0.8, "seed": "MILP at 2.1 ms"})
    assert run_content.reason_text(trial) == "budget: 0.8; seed: MILP at 2.1 ms"


def test_an_accuracy_that_is_an_estimate_can_be_filtered_out(
    record: SearchRecord, make_trial: MakeTrial
) -> None:
    trial = make_trial(0)
    assert trial.measurement is not None
    accuracy = replace(trial.measurement.accuracy, is_estimate=True)
    raced = replace(trial, measurement=replace(trial.measurement, accuracy=accuracy))
    assert run_content.trial_tags(record, raced, feasible=False)["estimate"] == "true"
    assert "estimate" not in run_content.trial_tags(record, trial, feasible=True)
