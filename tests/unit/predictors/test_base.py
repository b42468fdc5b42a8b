import json
from pathlib import Path

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.experiments.train import train
from rgpu.predictors.base import load_predictor
from rgpu.predictors.files import write_atomic
from rgpu.predictors.history_gru import HistoryGru
from rgpu.predictors.linear import Linear
from rgpu.predictors.popularity import Popularity
from rgpu.predictors.previous_token import PreviousToken
from rgpu.traces.split import split
from tests.predicting import learnable_trace


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Popularity(horizon=2).fit(learnable_trace()).save(tmp_path / "deep" / "p.v1")
    return tmp_path / "deep" / "p.v1"


def edit(stem: Path, **values: object) -> None:
    header = Path(f"{stem}.json")
    header.write_text(json.dumps(json.loads(header.read_text()) | values))


def test_header_says_what_it_is(saved: Path) -> None:
    document = json.loads(Path(f"{saved}.json").read_text())
    assert (document["kind"], document["parameters"]) == ("popularity", {"horizon": 2})
    assert document["_target_"] == "rgpu.predictors.popularity.Popularity"
    assert document["schema"]["experts"] == 8
    assert load_predictor(f"{saved}.json").horizon == 2


def test_wrong_kind(saved: Path) -> None:
    with pytest.raises(InputError, match="holds a predictor 'popularity'; expected 'previous_token'"):
        load_predictor(saved, PreviousToken)


@pytest.mark.parametrize("target", ["json.loads", "nowhere.Such", "rgpu.predictors.popularity.Nothing", "", "x"])
def test_target_must_be_a_class_with_load(saved: Path, target: str) -> None:
    edit(saved, _target_=target)
    with pytest.raises(InputError, match="expected an importable class"):
        load_predictor(saved)


def test_missing_or_broken_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read .*none.json"):
        load_predictor(tmp_path / "none")
    tensors = Path(f"{saved}.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-5])
    with pytest.raises(InputError, match="cannot read predictor"):
        load_predictor(saved)
    tensors.unlink()
    with pytest.raises(InputError, match="cannot read predictor"):
        load_predictor(saved)
    edit(saved, format="other")
    with pytest.raises(InputError, match="format 'other'"):
        load_predictor(saved)
    Path(f"{saved}.json").write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        load_predictor(saved)


def test_unknown_parameter_of_a_newer_version(saved: Path) -> None:
    edit(saved, parameters={"horizon": 2, "novelty": 1})
    with pytest.raises(InputError, match="cannot read predictor"):
        load_predictor(saved)


def test_event_of_a_layer_that_the_model_lacks() -> None:
    import numpy as np

    from rgpu.types import RoutingEvent

    predictor = Popularity().fit(learnable_trace())
    with pytest.raises(InputError, match="MoE layer 4"):
        predictor.observe(RoutingEvent(4, 0, np.zeros((1, 2), np.int16)))


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")
    with pytest.raises(Exception, match="dtype|numpy|attribute"):
        write_atomic(path, {"a": object()})  # type: ignore[dict-item]
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_text() == "old"


def test_forecasts_share_nothing_that_can_be_written_to() -> None:

    from rgpu.replay.stream import routing_events

    trace = learnable_trace()
    predictor = Popularity().fit(trace)
    predictor.observe(next(routing_events(trace)))
    first = predictor.predict()
    with pytest.raises(ValueError, match="read-only"):
        first.layers[0] = 3
    first.probs_HE[:] = 0
    assert predictor.predict().probs_HE.any()
    predictor.horizon = 1
    assert len(predictor.predict().layers) == 2


def test_halves_of_two_saves_are_told_apart(saved: Path, tmp_path: Path) -> None:
    Popularity(horizon=2).fit(learnable_trace(seed=1)).save(tmp_path / "other")  # the same shapes
    Path(f"{saved}.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(InputError, match="cannot read predictor .*not of one save.*train it again"):
        load_predictor(saved)


def test_a_schema_that_does_not_fit_the_tensors_is_one_line(tmp_path: Path) -> None:
    HistoryGru(size=4, epochs=0).fit(learnable_trace()).save(tmp_path / "p")
    edit(tmp_path / "p", parameters={"size": "wide"})
    with pytest.raises(InputError, match="cannot read predictor"):
        load_predictor(tmp_path / "p")


def test_what_follows_from_the_fit_outlives_a_reset() -> None:
    trace = learnable_trace()
    predictor = Linear(epochs=0).fit(trace)
    rows, first = np.arange(2), np.array([True, False])
    before = predictor.predict_trace(trace, 0, rows, first)
    kept = predictor._maps[0]
    predictor.reset()
    assert predictor._maps[0] is kept
    predictor.fit(learnable_trace(seed=1))
    assert not predictor._maps
    assert not np.array_equal(predictor.predict_trace(trace, 0, rows, first), before)


def test_the_example_of_the_guide_trains_saves_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(__file__).parents[3] / "docs/add_a_predictor.md"
    lines = guide.read_text().split("\n    import numpy as np\n")[1].split("\n\n`predictors/base.py`")[0].split("\n")
    (tmp_path / "mine.py").write_text("import numpy as np\n" + "\n".join(line[4:] for line in lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from mine import Mine  # type: ignore[import-not-found]

    trace = learnable_trace()
    _, rows = train(Mine(horizon=2), trace, split(trace), tmp_path / "p", horizons=2)
    _, popular = train(Popularity(horizon=2), trace, split(trace), tmp_path / "q", horizons=2)
    assert [row["value"] for row in rows] == [row["value"] for row in popular]
    assert load_predictor(tmp_path / "p", expect=trace).horizon == 2
