"""What a rotary policy refuses before it writes anything: modes, heads and trajectories that do not fit the pools."""

import contextlib
from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.loop import CAP, REG
from rgpu.policies.policy import Setting
from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.policies.rotation.prepare import check
from rgpu.types import MoEShape


def setting(pool_of: list[int], slots: int = 8, experts: int = 8, columns: int = 0, feature: str = "hidden") -> Setting:
    """Pools of `slots` each, in a state of `columns` columns (0: as many as the widest pool has keys)."""
    pools, wide = max(pool_of) + 1, max(pool_of.count(p) for p in pool_of)
    columns = columns or wide * experts
    m, f = np.zeros((pools, REG + 1, max(columns, CAP + 1)), np.int64), np.zeros((pools, 3, columns))
    m[:, REG, CAP] = slots
    base = np.array([pool_of[:layer].count(p) * experts for layer, p in enumerate(pool_of)])
    return Setting(m, f, MoEShape(len(pool_of), experts, 2), np.array(pool_of), base, feature, None, 0)


def refused(what: str) -> Any:
    return pytest.raises(InputError, match=what) if what else contextlib.nullcontext()


@pytest.mark.parametrize(("pool_of", "refusing"), [
    ([0], ()),
    ([0, 0], ("grouped",)),
    ([0, 0, 0], ("grouped",)),
    ([0, 1], ("grouped", "synchronised", "switching")),
    ([0, 1, 2], ("grouped", "synchronised", "switching")),
    ([0, 0, 1, 1], ("synchronised",)),
    ([0, 0, 0, 1, 1, 1, 2, 2, 2], ("synchronised",)),
    ([0, 0, 1], ("synchronised",)),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("mode", ["per_layer", "grouped", "synchronised", "switching"])
def test_a_mode_asks_for_pools_of_its_kind(mode: str, pool_of: list[int], refusing: tuple[str, ...]) -> None:
    scope = {"grouped": "group2", "synchronised": "global", "switching": "global"}
    pools, layers = max(pool_of) + 1, len(pool_of)
    message = f"policy.mode: got {mode} with {pools} pools for {layers} layers; .* set pool.scope={scope.get(mode)} or"
    with refused(message if mode in refusing else ""):
        check(RotaryPaper(mode=mode), setting(pool_of))


@pytest.mark.parametrize(("pool_of", "mode", "what"), [
    ([0, 1], "per_layer", ""), ([0, 0], "synchronised", ""), ([0, 0, 1, 1], "grouped", ""), ([0], "switching", ""),
    ([0, 0], "per_layer", "got mode=per_layer in a pool of 2"), ([0, 0, 0], "switching", "got mode=switching in a pool of 3"),
], ids=str)  # fmt: skip
def test_only_one_input_a_pool_turns_online(pool_of: list[int], mode: str, what: str) -> None:
    check(RotaryPaper(mode=mode), setting(pool_of))
    with refused(what):
        check(RotaryPaper(mode=mode, online=True), setting(pool_of))


@pytest.mark.parametrize(("heads", "pool_of", "slots", "least"), [
    (1, [0], 0, None), (1, [0, 0, 0], 2, None), (2, [0, 0, 0], 2, 0), (2, [0], 1, 1), (2, [0, 0, 0], 5, 1),
    (2, [0, 0, 0], 6, None), (3, [0, 0, 0], 8, 2), (3, [0, 1, 2], 8, None), (8, [0, 1], 8, None), (8, [0, 1], 7, 7),
], ids=str)  # fmt: skip
def test_every_head_of_a_layer_has_a_slot(heads: int, pool_of: list[int], slots: int, least: int | None) -> None:
    with refused("" if least is None else f"policy.heads: got {heads} for {least} slots a layer"):
        check(RotaryPaper(heads=heads), setting(pool_of, slots))


@pytest.mark.parametrize(("pool_of", "experts", "columns", "most"), [
    ([0], 256, 0, None), ([0], 257, 0, 256), ([0], 257, 513, 256), ([0], 257, 514, None),  # as wide as the feature
    ([0, 0], 256, 0, None), ([0, 0], 257, 0, 512), ([0, 0, 0], 300, 700, 512), ([0, 0], 300, 899, 512),
    ([0, 0], 300, 900, None), ([0, 1, 2], 300, 0, 256), ([0, 1, 2], 300, 600, None),
], ids=str)  # fmt: skip
def test_the_rows_of_trajectories_hold_every_expert_of_a_pool(
    pool_of: list[int], experts: int, columns: int, most: int | None
) -> None:
    given = setting(pool_of, 8, experts, columns)
    check(RotaryPaper(), given)
    keys = experts * pool_of.count(0)
    with refused("" if most is None else f"got trajectory with {keys} experts a pool; expected at most {most};"):
        check(RotaryPaper(transforms=["projection", "trajectory"]), given)


def test_router_rows_are_compared_with_hidden_states_only() -> None:
    policy = RotaryPaper(signatures="router_rows", router="model")
    check(policy, setting([0, 1]))
    with refused("policy.signatures: got router_rows on a trace without hidden states"):
        check(policy, setting([0, 1], feature="routing"))


@pytest.mark.parametrize(("name", "value", "what"), [
    ("heads", 1.5, "a whole number from 1 to 8;"), ("window", 65, "a whole number from 1 to 64;"),
    ("cycle", -1, "a whole number from 0 to inf or null;"), ("step", -0.5, "a number from 0 to inf or null;"),
    ("distance_low", 2.5, "a number from 0 to 2;"),
], ids=str)  # fmt: skip
def test_a_number_out_of_bounds_is_told_what_is_expected(name: str, value: Any, what: str) -> None:
    with refused(f"policy.{name}: got {value}; expected {what}"):
        RotaryPaper(**{name: value})
