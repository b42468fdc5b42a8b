"""The plan keeps to its caps, the smallest cap it names is the smallest, and more memory never means fewer slots."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.planning.memory_plan import MIB, MemoryPlan, MemoryRow, plan_memory, readable, slots_at
from rgpu.planning.model_facts import KvLayer, LayerParts, ModelFacts
from rgpu.planning.workspace import workspace_bytes
from rgpu.transfer.staged_reads import BUFFERS as READ_BUFFERS

FACTS = ModelFacts(
    name="toy", dtype="bfloat16", itemsize=2, format="int4", layer_ids=(1, 2, 3), experts=8, top_k=2, hidden=64,
    intermediate=32, expert_bytes=3300, expert_stride=3328, expert_weights=3 * 64 * 32, embedding_bytes=12_800,
    head_bytes=12_800, head_weights=6400, other_bytes=128,
    parts=(LayerParts(attention=9000, other=500, weights=4500), *(LayerParts(attention=9000, router=1024, weights=5000),) * 3),
    kv=(KvLayer(256), KvLayer(256, window=16), KvLayer(256), KvLayer(0, state=4096)),
    vocab=100, max_context=1000, layer_width=300, expanded_kv=512, heads=4,
)  # fmt: skip

kv = st.builds(KvLayer, st.integers(0, 300), st.sampled_from([0, 2, 16]), st.integers(0, 99))
facts = st.builds(
    replace, st.just(FACTS), experts=st.integers(4, 40), expert_stride=st.integers(1, 40).map(lambda n: 128 * n),
    scores=st.booleans(), itemsize=st.sampled_from([2, 4]),
    kv=st.lists(kv, min_size=1).map(tuple),
)  # fmt: skip
asked = st.fixed_dictionaries(
    {
        "context": st.integers(1, 1000), "batch": st.integers(1, 5), "scope": st.sampled_from(["layer", "global", "group3"]),
        "staging": st.integers(0, 3), "prefill_rows": st.none() | st.integers(1, 2000),
        "process_bytes": st.integers(0, 99_999), "cuda_bytes": st.integers(0, 99_999),
    }
)  # fmt: skip
gpu = st.booleans()


def smallest(model: ModelFacts, with_gpu: bool, request: dict[str, Any]) -> dict[str, Any]:
    """The caps that the error names; vram None without a GPU."""
    with pytest.raises(InputError) as error:
        plan_memory(model, vram=0 if with_gpu else None, ram=0, **request)
    line = str(error.value)
    assert "\n" not in line
    remedy = line.partition("give ")[2]
    found: dict[str, Any] = {"vram": None}
    found |= {where: int(size) for where, size in re.findall(r"memory\.(vram|ram)=(\d+)", remedy)}
    assert (found["vram"] is not None) == with_gpu
    return found


@given(facts, gpu, asked)
@settings(max_examples=150, deadline=None)
def test_the_smallest_caps_work_and_a_byte_less_does_not(
    model: ModelFacts, with_gpu: bool, request: dict[str, Any]
) -> None:
    least = smallest(model, with_gpu, request)
    plan = plan_memory(model, **least, **request)
    loading = request["process_bytes"] + model.dense_bytes + max(model.embedding_bytes, model.head_bytes)
    if with_gpu or least["ram"] > loading:
        assert plan.slots == request["staging"] + 1
    else:  # reading the weights takes more than running with the fewest slots
        assert least["ram"] == loading and plan.slots >= request["staging"] + 1
    for where, cap in least.items():
        if cap is not None:
            with pytest.raises(InputError, match=f"memory.{where}={cap - 1}"):
                plan_memory(model, **(least | {where: cap - 1}), **request)


@given(facts, gpu, asked, st.integers(0, 2_000_000), st.integers(0, 2_000_000))
@settings(max_examples=200, deadline=None)
def test_a_plan_fills_its_caps_and_never_more(
    model: ModelFacts, with_gpu: bool, request: dict[str, Any], more_vram: int, more_ram: int
) -> None:
    least = smallest(model, with_gpu, request)
    caps = {"vram": least["vram"] + more_vram if with_gpu else None, "ram": least["ram"] + more_ram}
    plan = plan_memory(model, **caps, **request)
    place = "vram" if with_gpu else "ram"
    total = model.layers * model.experts
    assert plan.experts == total == plan.ram_experts + plan.disk_experts
    assert 0 < plan.share <= 1
    for where, cap in caps.items():
        assert plan.used(where) <= (cap or 0)
    one_more = plan.pools * plan.slot_bytes
    full = plan.pools * plan.slots == total
    assert full or plan.used(place) + one_more > (caps[place] or 0)
    if with_gpu:
        assert plan.ram_experts == total or plan.used("ram") + plan.slot_bytes > caps["ram"]
        buffers = sum(row.bytes for row in plan.rows if row.name == "read buffers")
        assert buffers == (plan.disk_experts > 0) * READ_BUFFERS * plan.slot_bytes and plan.ram_experts > 0
    else:
        assert plan.ram_experts == 0
    kept = {key: value for key, value in request.items() if key != "context"}
    assert slots_at(model, request["context"], **caps, **kept) == plan.slots


@given(facts, gpu, asked, st.integers(0, 1_000_000), st.integers(1, 1000))
@settings(max_examples=200, deadline=None)
def test_slots_never_grow_with_the_context(
    model: ModelFacts, with_gpu: bool, request: dict[str, Any], more: int, other: int
) -> None:
    least = smallest(model, with_gpu, request)
    kept = {key: value for key, value in request.items() if key != "context"}
    caps = {"vram": least["vram"] + more if with_gpu else None, "ram": least["ram"] + more}
    short, long = sorted((request["context"], other))
    few, many = (slots_at(model, c, **caps, **kept) for c in (long, short))
    assert few <= many
    assert few == 0 or few >= request["staging"] + 1


@given(facts, st.integers(1, 900), st.integers(1, 4), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_workspace_never_shrinks(model: ModelFacts, context: int, batch: int, rows: int) -> None:
    base = workspace_bytes(model, context, batch, rows)
    assert base <= workspace_bytes(model, context + 1, batch, rows)
    assert base <= workspace_bytes(model, context, batch, rows + 1)


def test_rows_with_and_without_a_gpu() -> None:
    request: dict[str, Any] = {"context": 100, "process_bytes": 1000, "cuda_bytes": 2000}
    device = plan_memory(FACTS, vram=1 << 20, ram=1 << 20, **request)
    host = plan_memory(FACTS, vram=None, ram=1 << 20, **request)
    places = {row.name: (row.where, row.bytes) for row in device.rows}
    assert {name: where for name, (where, _) in places.items()} == {
        "process": "ram", "dense weights": "vram", "KV cache": "vram", "workspace": "vram", "CUDA context": "vram",
        "expert slots": "vram", "experts in host memory": "ram",
    }  # fmt: skip
    assert places["dense weights"][1] == FACTS.dense_bytes == 12_800 * 2 + 128 + 9500 + 3 * 10_024
    assert places["KV cache"][1] == 256 * 100 + 256 * 16 + 256 * 100 + 4096
    growing = next(row.bytes for row in host.rows if row.name == "KV cache")
    assert growing == 256 * 100 + 256 * 15 + 256 * 100 + 4096
    assert places["CUDA context"][1] == 2000
    assert {row.where for row in host.rows} == {"ram"}
    assert "experts in host memory" not in {row.name for row in host.rows}
    assumed = [row.how for row in device.rows if row.name == "CUDA context"]
    assert assumed[0].startswith("measured")


def test_what_else_a_run_holds_takes_its_place() -> None:
    more = (MemoryRow("tier", 10_000, "ram", "so many experts"),)
    request: dict[str, Any] = {"context": 100, "process_bytes": 1000}
    least = smallest(FACTS, False, request)["ram"]
    assert smallest(FACTS, False, request | {"more": more})["ram"] == least + 10_000
    plan = plan_memory(FACTS, vram=None, ram=least + 30_000, **request)
    less = plan_memory(FACTS, vram=None, ram=least + 30_000, more=more, **request)
    assert less.slots == plan.slots - 1  # of 3 pools: 9,984 bytes
    assert [row.bytes for row in less.rows if row.name == "tier"] == [10_000]


def test_shares_and_tightness() -> None:
    def plan(slots: int) -> MemoryPlan:
        fixed = plan_memory(FACTS, vram=None, ram=1 << 30, context=10).used("ram") - 24 * 3328
        return plan_memory(FACTS, vram=None, ram=fixed + slots * 3 * 3328, context=10, staging=0)

    assert [plan(n).slots for n in (1, 2, 8, 9)] == [1, 2, 8, 8]
    assert [plan(n).tight for n in (1, 2)] == [True, False]
    assert plan(2).share == 0.25


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"context": 0}, "context: got 0"), ({"context": 1001}, "at most 1000"), ({"batch": 0}, "batch: got 0"),
        ({"scope": "row"}, "pool.scope"), ({"staging": -1}, "pool.staging"), ({"staging": 8}, "pool.staging"),
        ({"prefill_rows": 0}, "prefill_rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(change: dict[str, Any], needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        plan_memory(FACTS, **{"vram": None, "ram": 1 << 40, "context": 10} | change)


def test_readable_sizes() -> None:
    assert [readable(n) for n in (0, 999, 1000, 117 * MIB, 8 << 30)] == [
        "0 B",
        "999 B",
        "0.977 KiB",
        "117 MiB",
        "8 GiB",
    ]
