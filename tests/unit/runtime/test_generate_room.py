"""`rgpu generate` whose slots change as it goes on: with the context, and with caps that come later."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rgpu.errors import InputError
from rgpu.experiments.live_room import caps_of
from rgpu.planning.memory_plan import PROCESS_BYTES, SlotRoom, plan_memory, slots_at
from rgpu.policies.lru import Lru
from rgpu.replay.resizing import Resizes
from rgpu.runtime.model_bytes import read_facts
from rgpu.runtime.session import OffloadSession
from rgpu.traces.storage import load_trace
from tests.live_models import LAYERS, build
from tests.unit.runtime.generating import generate, with_tokenizer

pytestmark = pytest.mark.usefixtures("stores")
NEW, SLOT = 40, 24_576


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose cache takes about a slot every four tokens, and that does not end its text."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "head_dim": 128, "eos_token_id": 95}
    return with_tokenizer(build("qwen3_moe", tmp_path_factory.mktemp("long"), **sizes))


def cap_of(folder: Path, *overrides: str) -> int:
    """The smallest cap that works."""
    with pytest.raises(InputError) as raised:
        generate(folder, "memory.ram=1", *overrides)
    found = re.search(r"give memory\.ram=(\d+)", str(raised.value))
    assert found
    return int(found[1])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_slots_are_given_back_as_the_context_grows(long: Path, scope: str) -> None:
    overrides = (f"max_new_tokens={NEW}", f"pool.scope={scope}", "verify=true")
    cap = cap_of(long, *overrides, "memory.grow=true") + 2 * SLOT
    fixed = generate(long, *overrides, f"memory.ram={cap}")
    grown = generate(long, *overrides, f"memory.ram={cap}", "memory.grow=true")
    assert grown["failed"] == fixed["failed"] == []
    assert grown["token_ids"] == fixed["token_ids"] and len(grown["token_ids"]) == NEW
    later, pools = grown["memory"]["later"], LAYERS if scope == "layer" else 1
    slots = [change["slots"] for change in later["changes"]]
    assert later["slots_at_start"] == pools * grown["memory"]["plan"][-1]["bytes"] // SLOT // pools
    assert later["slots_at_start"] > slots[0] and slots == sorted(set(slots), reverse=True)  # back, and never again
    assert later["slots_at_end"] == slots[-1] >= later["slots_at_full_context"] == pools * fixed["slots"]
    assert len(slots) > 3 and max(a - b for a, b in zip([later["slots_at_start"], *slots], slots, strict=False)) <= 2
    assert grown["hits"] > fixed["hits"] and "later" not in fixed["memory"]
    assert grown["memory"]["pool_bytes"] == SLOT * later["slots_at_end"]


def test_caps_that_come_later(long: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, own = tmp_path / "passes.json", tmp_path / "own.safetensors"
    overrides = (f"max_new_tokens={NEW}", "verify=true", f"telemetry_out={rows}", f"trace_out={own}")
    least = cap_of(long, *overrides)
    caps = f"[[5,{least}],[9,{least - 1}],[20,{least + 100 * SLOT}]]"
    made = generate(long, *overrides, f"memory.ram={least + 9 * SLOT}", f"memory.then={caps}")
    assert made["failed"] == []
    later = made["memory"]["later"]
    assert [(c["pass"], c["slots"]) for c in later["changes"]] == [(5, 6), (20, 30)]
    assert later["refused"] == [{"tokens": 9, "cap_bytes": least - 1, "smallest_bytes": least}]
    assert f"got {least - 1} bytes from 9 tokens on; expected at least {least}" in capsys.readouterr().err
    assert [(c["tokens"], c["cap_bytes"]) for c in later["caps"]] == [
        (0, least + 9 * SLOT), (5, least), (20, least + 100 * SLOT)
    ]  # fmt: skip
    assert max(c["peak_bytes"] for c in later["caps"]) == made["memory"]["peak_bytes"]
    assert later["cap_bytes_at_end"] == least + 100 * SLOT and made["slots"] == 10
    slots = [row["slots"] for row in json.loads(rows.read_text())]
    assert slots == [15] * 5 + [6] * 15 + [30] * 20
    assert Resizes.of(load_trace(own)).left == [(5, p, 2) for p in range(3)] + [(20, p, 10) for p in range(3)]
    both = generate(
        long, *overrides, f"memory.ram={least + 9 * SLOT}", f"memory.then=[[5,{least}]]", "memory.grow=true"
    )
    alone = generate(long, *overrides, f"memory.ram={least + 10 * SLOT}", f"memory.then=[[5,{least}]]")
    assert [change["pass"] for change in alone["memory"]["later"]["changes"]] == [5]  # not for what a division leaves
    assert both["failed"] == [] and both["token_ids"] == made["token_ids"]
    assert both["memory"]["later"]["slots_at_end"] >= 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("memory.grow=true",), "memory.grow: got it without a cap"),
        (("memory.then=[[1,6GiB]]",), "memory.then: got it without a cap"),
        (("memory.ram=6GiB", "memory.then=[[5,6GiB]]"), "memory.then: .* from 1 to 4, and a cap"),
        (("memory.ram=6GiB", "memory.then=[6GiB]"), "memory.then: .*expected pairs"),
        (("memory.ram=6GiB", "memory.then=6GiB"), "memory.then: .*expected pairs"),
        (("memory.ram=6GiB", "memory.then=[[1,much]]"), "memory.then: got 'much'; expected a size"),
        (("memory.ram=6GiB", "memory.then=[[2,6GiB],[1,7GiB]]"), "memory.then: .*put them in order"),
    ],
)
def test_what_cannot_be(wide: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        generate(wide, *overrides)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("change", ["memory.grow=true", "memory.then=[[2,7GiB]]"])
def test_a_policy_that_cannot_change_is_refused_at_the_start(
    long: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Not in the middle of the text, when the first slot is to go."""
    monkeypatch.setattr(Lru, "traits", replace(Lru.traits, resizes=False))
    monkeypatch.setattr(OffloadSession, "open", None)
    with pytest.raises(InputError, match="policy lru: got a pool that changes its size"):
        generate(long, "policy=lru", "memory.ram=6GiB", change)


def test_room_is_what_the_plan_has(wide: Path) -> None:
    facts, cap = read_facts(str(wide), "float32"), PROCESS_BYTES + (1 << 20)
    room = SlotRoom(facts, gpu=False)
    before = 1 << 30
    for context in (1, 8, 60, 128):
        rows = room.rows(context, cap)
        plan = plan_memory(facts, vram=None, ram=cap, context=context)
        assert 0 <= rows - plan.pools * plan.slots < plan.pools or rows == plan.experts
        assert slots_at(facts, context, vram=None, ram=cap) == plan.slots
        assert rows <= before
        before = rows
        least = room.smallest(context)
        assert room.rows(context, least) >= plan.pools * 2 and room.rows(context, least - 1) == 0
    assert caps_of(None, 5) == []
