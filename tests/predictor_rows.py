"""Made-up rows for the figures of predictors, with the published values beside them."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from rgpu.experiments.figures.predictor_next_token import CASES
from rgpu.experiments.study.predictor_metrics import DISTANCES, cell_name
from rgpu.experiments.suites.predictors import figures
from rgpu.experiments.suites.published import marks
from rgpu.results.rows import Context

NAMES = ("popularity", "gate_lookahead", "linear", "mine")


def predictor_rows(context: Context) -> list[pa.Table]:
    parts = [table for make in (_recall, _layers, _scored, _sources, _sides, _around) for table in make(context)]
    for module in figures():
        parts += marks.value_rows(module.ABOUT.figure, module.ABOUT.id, context.trace, {})
    return parts


def _spread(value: float) -> dict[str, float]:
    return {"lo": value - 0.02, "hi": value + 0.02}


def _recall(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="predictor_recall", method="trained")
    for i, name in enumerate(NAMES):
        for width in (2, 4):
            for horizon in (1, 2, 3):
                value = 0.3 + 0.1 * i + 0.05 * width - 0.03 * horizon
                own = at.at(predictor=name, width=width)
                yield own.rows("recall", "share", value, case="layer", horizon=horizon, **_spread(value))
            yield own.rows("recall", "share", 0.3 + 0.05 * i, case="token", lag=1, **_spread(0.3 + 0.05 * i))
    yield at.rows("recall_chance", "share", np.array([0.2, 0.4]), width=np.array([2, 4]))


def _layers(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="predictor_layers", method="trained")
    for layer in (1, 2, 3):
        for i, name in enumerate(NAMES):
            for j, case in enumerate(("width k", "width 2 k")):
                value = 0.4 + 0.05 * i + 0.1 * j + 0.02 * layer
                own = at.at(predictor=name, layer=layer, horizon=1)
                yield own.rows("recall", "share", value, case=case, width=2 + 2 * j, **_spread(value))
            for horizon in range(1, layer + 1):
                own = at.at(predictor=name, layer=layer, horizon=horizon)
                yield own.rows("top1", "share", 0.9 - 0.1 * horizon, case="width k", width=1)
        for horizon in range(1, layer + 1):
            yield at.rows("hidden_cosine", "share", 1 - 0.1 * horizon, layer=layer, horizon=horizon)
    for horizon in (1, 2, 3):
        yield at.rows(
            "top1", "share", 0.9 - 0.1 * horizon, predictor="gate_lookahead", case="over layers", horizon=horizon
        )


def _scored(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="predictor_accuracy", method="trained")
    yield at.rows("accuracy_of_none", "share", 0.8)
    for i, name in enumerate(NAMES):
        recall = 0.4 + 0.1 * i
        own = context.at(method="trained", predictor=name, horizon=1, width=2)
        for metric, value in (("accuracy", 0.8 + 0.04 * i), ("exact_match", 0.1 * i), ("recall", recall)):
            yield own.at(experiment="predictor_accuracy").rows(metric, "share", value, x=recall, **_spread(value))
        yield own.at(experiment="predictor_cost").rows("recall", "share", recall, x=5.0 + i, **_spread(recall))
        yield own.at(experiment="predictor_cost").rows("us", "us/event", 5.0 + (i * 3) % 4, lo=4.0, hi=11.0)
        yield own.at(experiment="predictor_cost").rows("state_bytes", "bytes", 10.0 ** (i + 1))
        for case in ("layer", "token"):
            own = context.at(experiment="predictor_calibration", method="trained", predictor=name, case=case)
            yield own.rows("ece", "share", 0.02 * (i + 1), lo=0.01, hi=0.2)
            yield own.rows("log_loss", "nats/pair", 0.1 * (i + 1))
            for x in (0.05, 0.5, 0.95):
                yield own.rows("routed", "share", x, x=x + 0.01 * i, **_spread(x))


def _sources(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="predictor_next_token", method="trained", lag=1)
    for i, case in enumerate(CASES):
        for metric, more in (("recall", 0.0), ("recall_wide", 0.1)):
            value = 0.3 + 0.07 * i + more
            yield at.rows(metric, "share", value, case=case, **_spread(value))


def _sides(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="predictor_transfer", method="trained")
    for group, kinds in (("domain", ("prose", "code")), ("text", ("generations", "text"))):
        for name in NAMES[:3]:
            for trained in kinds:
                for tested in kinds:
                    own = at.at(case=group, predictor=name, baseline=trained, domain=tested)
                    for horizon in (1, 3):
                        value = 0.8 - 0.1 * (trained != tested) - 0.05 * horizon
                        yield own.rows("recall", "share", value, horizon=horizon, count=9, **_spread(value))
                        if trained != tested:
                            yield own.rows(
                                "recall_difference", "share", -0.1, horizon=horizon, verdict="worse", **_spread(-0.1)
                            )


def _around(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="predictor_switches", method="trained")
    for name in NAMES:
        for case in ("layer", "token"):
            for cell, offset in enumerate(DISTANCES):
                value = 0.6 + 0.02 * cell
                yield at.rows(
                    "recall",
                    "share",
                    value,
                    predictor=name,
                    case=case,
                    offset=offset,
                    domain=cell_name(cell),
                    **_spread(value),
                )
