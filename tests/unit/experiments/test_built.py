"""Config nodes become objects only with values that their parameters can have."""

from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.built import built, fits
from rgpu.experiments.replay import run


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("policy=lfu_decayed", "policy.half_life=null"), "half_life: got null; expected an integer; set policy.half_life=64"),
        (("policy=slru", "policy.segments=null"), "policy.segments: got null; expected an integer; set policy.segments=2"),
        (("policy=static_hot", "policy.passes=null", "policy.scope=sequence"), "policy.passes: got null; expected an integer"),
        (("policy=lfru", "policy.forget=null"), "policy.forget: got null; expected true or false; set policy.forget=true"),
        (("policy=gdsf", "policy.cost=null"), "policy.cost: got null; expected a text; set policy.cost=one"),
        (("policy=lru_k", "policy.retained=abc"), "retained: got 'abc'; expected an integer or null; set policy.retained=null"),
        (("policy=lru_k", "policy.retained=1.5"), "policy.retained: got 1.5; expected an integer or null"),
        (("policy=router_lag", "policy.step=true"), "policy.step: got True; expected an integer or null"),
        (("admission=second_hit", "admission.window=null"), "admission.window: got null; expected an integer"),
        (("allocator=entropy", "allocator.power=null"), "power: got null; expected a number; set allocator.power=1.0"),
        (("policy=plain", "policy.file=null"), "policy.file: got null; expected a text; give one"),
    ],
    ids=lambda x: x if isinstance(x, str) else "+".join(x),
)  # fmt: skip
def test_a_value_that_cannot_be_is_one_line(
    words: tuple[str, ...], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["replay", *words])
    with pytest.raises(SystemExit) as stop:
        run.main()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and line in err and err.count("\n") == 1


@pytest.mark.parametrize("word", ["policy.step=0.5", "policy.step=null", "policy.step_high=2.5", "policy.average=16.5"])
def test_floats_may_be_given_as_such(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Seen(Exception):
        pass

    def stop(cfg: Any, group: str, **more: Any) -> Any:
        seen.append(built(cfg, group, **more))
        raise Seen

    monkeypatch.setattr("rgpu.experiments.inputs.built", stop)
    monkeypatch.setattr("sys.argv", ["replay", "policy=rotary_paper", word])
    with pytest.raises(Seen):
        run.main()
    name, _, value = word.removeprefix("policy.").partition("=")
    assert getattr(seen[0], name) == (None if value == "null" else float(value))


def test_what_fits() -> None:
    for value, hint in ((1, float), (1.0, float | None), (None, int | None), ("x", str), (3, str), (True, bool),
                        (None, Any), ([1], Any), ("x", dict)):  # fmt: skip
        assert fits(value, hint)
    for value, hint in ((None, float), (1.0, int), (True, int), (1, bool), ("x", float | None), (None, str)):
        assert not fits(value, hint)


def test_what_cannot_be_imported_is_left_to_hydra() -> None:
    cfg = OmegaConf.create({"_target_": "rgpu.nothing.There", "x": None})
    with pytest.raises(Exception, match="Error locating target|Error loading") as ours:
        built(cfg, "policy")
    with pytest.raises(type(ours.value)):
        instantiate(cfg)
    with pytest.raises(InputError):
        built(OmegaConf.create({"_target_": "rgpu.policies.slru.Slru", "segments": None}), "policy")
