"""`rgpu compare`: one plain Python file against baselines, compiled where that changes nothing, with verdicts and times."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rgpu.errors import InputError
from rgpu.experiments.compare import run
from rgpu.experiments.replay import run as replay_run
from rgpu.experiments.study.comparing import fitting
from rgpu.policies.plain import Plain
from rgpu.replay.compile_hooks import CompiledPlain, check_decisions, compiled_or_plain
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.results.rows import read
from rgpu.traces.storage import save_trace
from tests.support import routed_trace
from tests.user_policies import LRU, WRONG, written

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "most_recent.py"
PYTHON_ONLY = """
from rgpu.policies.loop import CAP, KEY_OF, REG, evictable
seen = {}
def on_access(m, f, key, hit):
    seen[key] = seen.get(key, 0) + 1
def victim(m, f):
    return min((c for c in range(m[REG, CAP]) if evictable(m, c)), key=lambda c: (seen.get(m[KEY_OF, c], 0), c))
"""


def test_a_policy_that_numba_takes_is_compiled_and_decides_alike() -> None:
    trace, pool = routed_trace(1, tokens=60), PoolConfig(slots=3)
    plain = Plain(str(EXAMPLE))
    fast, how = compiled_or_plain(plain, trace, pool)
    assert fast is not plain and how.startswith("compiled, the same decisions")
    assert (fast.name, fast.traits) == (plain.name, plain.traits)
    other = routed_trace(2, tokens=80)
    a, b = (replay(other, p, pool, log=True) for p in (fast, plain))
    assert a.log == b.log


def test_a_policy_that_numba_refuses_stays_plain(tmp_path: Path) -> None:
    file = tmp_path / "counting.py"
    file.write_text(PYTHON_ONLY)
    plain = Plain(str(file))
    used, how = compiled_or_plain(plain, routed_trace(1, tokens=30), PoolConfig(slots=3))
    assert used is plain and how.startswith("plain Python: numba cannot compile it")


def test_sequences_and_capacities_fit_the_time() -> None:
    trace = routed_trace(1, tokens=400, sequences=20)
    cost = 20 * 2 * 2  # accesses of a sequence
    whole, slots = fitting(trace, cost, 1000.0, [2, 4, 6], 1, 0)
    assert whole is trace and slots == [2, 4, 6]
    part, slots = fitting(trace, cost, 30.0, [2, 4, 6], 1, 0)
    assert part.sequences == 10 and slots == [2, 4, 6]
    least, slots = fitting(trace, cost, 1.0, [2, 4, 6], 1, 0)
    assert least.sequences == 8 and slots == [4]


def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str]:
    monkeypatch.setattr("sys.argv", ["compare", *words])
    run.main()
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    made = routed_trace(4, tokens=400, sequences=20, sizes=(10, 10))
    return save_trace(made, tmp_path / "t.safetensors")


def test_a_whole_comparison(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        f"policy.file={EXAMPLE}",
        f"trace.path={trace}",
        f"out={tmp_path}",
        "shares=[0.25,0.5]",
        "machines=[rtx4090]",
    )
    found, err = compare(monkeypatch, capsys, *words, "baselines=[lru,on_demand,belady_bypass]", "budget_s=1000")
    assert found["sequences"] == found["of_sequences"] == 10 and found["left_out"] == {}
    assert found["slots"] == [2, 4]
    assert set(found["verdicts"]["4"]) == {"lru", "on_demand"}  # bounds are drawn against nobody
    assert set(found["verdicts"]["4"]["lru"]) == {"hit_rate", "loads_per_token", "tpot on rtx4090"}
    assert found["verdicts"]["4"]["on_demand"]["loads_per_token"] == "better"
    assert "most_recent with 4 slots" in err and "than lru" in err
    rows = read(found["rows"])
    assert set(rows["experiment"]) == {"capacity_sweep", "comparison"}
    tpot = rows[(rows["metric"] == "tpot") & (rows["experiment"] == "capacity_sweep") & rows["sequence"].isna()]
    assert tpot["simulated"].all() and (tpot["value"] > 0).all() and len(tpot) == 2 * 4
    assert all(Path(f).is_file() for f in found["figures"]) and len(found["figures"]) == 2


def test_warm_and_with_no_time_left(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"policy.file={EXAMPLE}", f"trace.path={trace}", f"out={tmp_path}", "machines=[]", "replay.reset=none")
    found, _ = compare(
        monkeypatch, capsys, *words, "orders=20", "baselines=[lru,fifo]", "budget_s=1000", "shares=[0.5]"
    )
    assert found["orders"] == 20 and set(found["verdicts"]["4"]) == {"lru", "fifo"}
    late, _ = compare(monkeypatch, capsys, *words, "baselines=[lru]", "budget_s=0.001", "shares=[0.5]")
    assert late["left_out"] == {"lru": "no time left; raise budget_s"} and late["verdicts"] == {}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "no value for policy.file"),
        ((f"policy.file={EXAMPLE}", "shares=[2]"), "shares: got 2"),
        ((f"policy.file={EXAMPLE}", "baselines=[lruu]"), "no policy=lruu; did you mean lru"),
        (("policy.file=none.py",), "got none.py"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    words: tuple[str, ...], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["compare", *words])
    with pytest.raises(SystemExit) as stop:
        run.main()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and match in err and err.count("\n") == 1


def test_a_missing_policy_file_is_an_input_error() -> None:
    with pytest.raises(InputError, match="expected a Python file"):
        Plain("nothing.py")


LATE = {
    "late_victim": (
        LRU + "def victim(m, f):\n    return 9999 if m[REG, EVENT] > 100 else oldest(m, OWN)\n",
        "victim returned 9999, outside the pool's 4 slots",
    ),
    "late_index": (
        LRU + "def on_evict(m, f, key):\n    if m[REG, EVENT] > 100:\n        m[OWN + 1, key] = 0\n",
        "line 11: on_evict raised IndexError",
    ),
    "late_write": (
        LRU + "def on_evict(m, f, key):\n    if m[REG, EVENT] > 100:\n        m[SLOT_OF, (key + 1) % 8] = 1\n",
        "its decisions could not have happened",
    ),
}  # what only the compiled run meets


def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Any, *words: str) -> str:
    monkeypatch.setattr("sys.argv", ["rgpu", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    err = capsys.readouterr().err
    assert stop.value.code == 2
    return err.splitlines()[-1]


@pytest.mark.parametrize("name", LATE)
def test_a_hook_that_fails_only_in_the_compiled_run_is_told_likewise(name: str, tmp_path: Path) -> None:
    policy, _ = compiled_or_plain(written(tmp_path, LATE[name][0]), routed_trace(4, tokens=40), PoolConfig(slots=4))
    assert isinstance(policy, CompiledPlain)
    with pytest.raises(InputError, match=re.escape(LATE[name][1])):
        check_decisions(policy, replay(routed_trace(4, tokens=400), policy, PoolConfig(slots=4), decisions=True))


def test_commands_name_the_place_and_give_no_verdict(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, what = WRONG["outside"]
    words = (f"policy.file={written(tmp_path, text).file}", f"trace.path={trace}")
    assert what in mistake(monkeypatch, capsys, replay_run.main, "policy=plain", *words, "pool.slots=2")
    text, what = LATE["late_write"]
    policy = written(tmp_path, text)
    grid = (f"policy.file={policy.file}", f"trace.path={trace}", f"out={tmp_path}", "machines=[]", "shares=[0.5]")
    found = mistake(
        monkeypatch, capsys, run.main, *grid, "baselines=[lru]", "budget_s=1000", "replay.reset=none", "orders=20"
    )
    assert what in found and not list(tmp_path.glob("*.parquet"))


def test_a_policy_that_refuses_misses_pays_for_staging_and_one_that_loads_ahead_is_not_ranked_by_hits(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "refuses": "def admit(m, f, key):\n    return key % 4 > 0\n",
        "ahead": "def desired(m, f):\n    m[REG, CHANGES] = 1\n    m[WANT, 0] = m[REG, EVENT] % 8\n    return 1\n",
    }
    for name, hook in files.items():
        policy = written(tmp_path, LRU + hook, name)
        words = (f"policy.file={policy.file}", f"trace.path={trace}", f"out={tmp_path}", "machines=[]", "shares=[0.5]")
        found, _ = compare(monkeypatch, capsys, *words, "baselines=[lru]", "budget_s=1000")
        assert set(found["verdicts"]["4"]["lru"]) == {"loads_per_token"}
        rows = read(found["rows"])
        assert set(rows.loc[rows["policy"] == name, "staging"].dropna()) == {int(name == "refuses")}


def test_a_clairvoyant_or_a_bound_gets_no_verdict(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = written(tmp_path, LRU + "TRAITS = Traits(rows=1, needs_future=True)\n", "seer")
    for words in ((f"policy.file={policy.file}",), ("policy=belady",), ("policy=size_aware_farthest",)):
        err = mistake(monkeypatch, capsys, run.main, *words, f"trace.path={trace}", f"out={tmp_path}")
        assert "knows the future" in err


def test_a_file_named_like_a_policy_is_compared_with_that_policy(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lru.py"
    file.write_text(EXAMPLE.read_text())
    words = (f"policy.file={file}", f"trace.path={trace}", f"out={tmp_path}", "machines=[]", "shares=[0.5]")
    found, err = compare(monkeypatch, capsys, *words, "baselines=[lru,fifo]", "budget_s=1000")
    assert found["policy"] == "lru (yours)" and set(found["verdicts"]["4"]) == {"lru", "fifo"}
    assert "lru (yours) with 4 slots" in err and Path(found["rows"]).name == "lru.parquet"


@pytest.mark.parametrize("share", ["0", "0.0"])
def test_a_comparison_without_a_split_is_refused(
    share: str, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"policy.file={EXAMPLE}", f"trace.path={trace}", f"calibration.share={share}")
    assert "calibration.share: got 0; expected a share" in mistake(monkeypatch, capsys, run.main, *words)
