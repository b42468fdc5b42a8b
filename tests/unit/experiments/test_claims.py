"""The claims suite: its statistics by hand, and every claim run on small made-up traces."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rgpu.experiments.plot import render
from rgpu.experiments.prompts import Prompt
from rgpu.experiments.suites.claim.arms import choose, described, paper
from rgpu.experiments.suites.claim.claims_page import build_page
from rgpu.experiments.suites.claim.context import Setting
from rgpu.experiments.suites.claim.inputs import Inputs, Material, halves
from rgpu.experiments.suites.claim.reported import reported
from rgpu.experiments.suites.claim.scoring import WINDOW, Arm, Bench, window_variance
from rgpu.experiments.suites.claim.switching import AROUND, around, rise, rise_difference
from rgpu.experiments.suites.claim.texts import TOPIC, paired, switch_texts
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    NOT_SUPPORTED,
    NOT_TESTABLE,
    SUPPORTED,
    Claim,
)
from rgpu.experiments.suites.claims import TESTS, all_tests
from rgpu.policies.lru import Lru
from rgpu.policies.ring import Ring
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.results.provenance import stamp
from rgpu.results.rows import append, read
from rgpu.traces.trace import Trace
from tests.support import routed_trace


def steady(sequences: int = 20, tokens: int = 70) -> Trace:
    return routed_trace(1, tokens=sequences * tokens, layers=4, experts=32, top_k=4, sequences=sequences, hidden=6)


def moving(texts: int = 10) -> Trace:
    """Topics of six experts each: 80 tokens of one, then of another; half of the texts then go back to the first."""
    topic = 2 * AROUND
    length = 3 * topic
    trace = routed_trace(2, tokens=2 * texts * length, layers=4, experts=32, top_k=4, sequences=2 * texts, hidden=6)
    rng, meta = np.random.default_rng(0), []
    for s in range(2 * texts):
        for part, first in enumerate((0, 20, 0)):
            span = slice(int(trace.seq_offsets[s]) + part * topic, int(trace.seq_offsets[s]) + (part + 1) * topic)
            drawn = rng.permuted(np.broadcast_to(np.arange(6), (topic, 4, 6)), axis=2)
            trace.expert_ids[span] = first + drawn[:, :, :4]
        back = s % 2 == 1
        meta.append(
            {
                "kind": "switch_back" if back else "switch",
                "document": [f"d{s // 2}"],
                "pair": s // 2,
                "switches": [topic, 2 * topic][: 1 + back],
            }
        )
    trace.header.sequences = meta
    return trace


@pytest.fixture(scope="module")
def setting() -> Setting:
    one = steady()
    moved = moving()
    reference = halves("reference", "made up", one, 1.0)
    switch = Material("reference_switch", "made up", moved, one, moved, 1.0)
    routing = halves("gpt-oss-20b", "made up", replace(one, hidden=None, router_logits=None))
    bench = Bench()
    chosen = {m.name: choose(bench, m, 8, quick=True) for m in (reference, routing)}
    return Setting(Inputs(reference, switch, routing), bench, (8,), 8, chosen, stamp({}, seed=0), quick=True)


@pytest.fixture(scope="module")
def claims(setting: Setting) -> list[Claim]:
    return [test(setting) for test in all_tests()]


def test_every_claim_is_tested_and_says_why(claims: list[Claim]) -> None:
    assert [c.id for c in claims] == [f"C{i}" for i in range(1, 10)] and len(TESTS) == 9
    for claim in claims:
        words = (NOT_TESTABLE,) if claim.id == "C5" else (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL)
        assert claim.verdict in words and claim.why and claim.source
        assert claim.rows or claim.id == "C5"
        json.dumps(claim.to_json())


def test_page_and_figures_come_from_the_rows(claims: list[Claim], tmp_path: Path) -> None:
    append(tmp_path / "rows.parquet", [t for c in claims for t in c.rows])
    names = [f"claim_{c.id.lower()}" for c in claims if c.rows]
    index = render(read(tmp_path / "rows.parquet"), tmp_path / "figures", names)
    assert {f["name"] for f in index["figures"]} == set(names)
    document = {
        "claims": [c.to_json() for c in claims],
        "not_testable": reported(),
        "chosen": {},
        "limits": ["made up"],
    }
    text = build_page(document, index, tmp_path).read_text()
    assert all(f"{c.id}: " in text and c.verdict in text for c in claims)


def test_a_topic_switch_shows_as_a_surge(setting: Setting) -> None:
    found = around(setting.bench, setting.inputs.switch, Arm("lru", Lru()), 8, "switch", 0)
    assert len(found.after) == 10 and not found.before.any() and (found.after_of == AROUND * 4 * 4).all()
    surge = rise(found)
    assert surge.lo > 0.02 and surge.estimate == pytest.approx(found.after.sum() / found.after_of.sum())
    same = rise_difference(found, found)
    assert same.estimate == same.lo == same.hi == 0.0


def test_texts_of_a_pair_are_one_cluster() -> None:
    apart, together = (Material(n, "made up", moving(), steady(), moving()) for n in ("apart", "together"))
    for meta in together.scored.header.sequences:
        meta["pair"] = meta["pair"] // 2
    one, two = (around(Bench(), m, Arm("lru", Lru()), 8, "switch", 0) for m in (apart, together))
    assert len(two.after) == 5 and two.after.tolist() == one.after.reshape(5, 2).sum(1).tolist()


def test_each_document_is_in_one_pair() -> None:
    made = {
        d: [Prompt(tuple(range(2 * TOPIC)), {"domain": d, "document": f"{d}/{i}"}) for i in range(n)]
        for d, n in {"a": 5, "b": 3, "c": 1}.items()
    }
    pairs = paired(made)
    used = [p.meta["document"] for pair in pairs for p in pair]
    assert len(pairs) == 4 and len(set(used)) == len(used)
    assert all(a.meta["domain"] != b.meta["domain"] for a, b in pairs)
    texts = switch_texts(made, pairs=2)
    assert [t.meta["kind"] for t in texts] == ["switch", "switch_back"] * 4
    assert {t.meta["pair"] for t in texts} == {0, 1}
    assert len(texts[0].token_ids) == 2 * TOPIC and texts[1].token_ids[2 * TOPIC :] == tuple(range(TOPIC, 2 * TOPIC))


def test_window_variance_is_that_of_windows_inside_a_sequence() -> None:
    trace = steady(4, 2 * WINDOW + 5)
    result = replay(trace, Lru(), PoolConfig(slots=8), reset="sequence", by_sequence=True)
    got = window_variance(result, trace.seq_offsets)
    hits_N = np.zeros(trace.tokens)
    np.add.at(hits_N, np.searchsorted(np.unique(trace.passes), result.events.pass_id), result.hits_event)
    for s in range(4):
        own = hits_N[trace.seq_offsets[s] : trace.seq_offsets[s + 1]] / 16
        want = np.var([own[:WINDOW].mean(), own[WINDOW : 2 * WINDOW].mean()])
        assert got[s] == pytest.approx(want)


def test_the_choice_never_reads_what_is_scored(setting: Setting) -> None:
    material = setting.inputs.reference
    other = replace(material, scored=routed_trace(9, tokens=300, layers=4, experts=32, top_k=4, sequences=4, hidden=6))
    assert choose(Bench(), other, 8, quick=True) == setting.chosen["reference"]


def test_one_label_may_name_two_policies(setting: Setting) -> None:
    bench, material = Bench(), setting.inputs.reference
    first = bench.counts(material, Arm("ring", Ring()), 8)
    assert bench.counts(material, Arm("ring", Ring(step=2)), 8).loads.sum() > first.loads.sum()


def test_what_was_counted_is_kept(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    material, arm = setting.inputs.reference, Arm("lru", Lru())
    found = Bench(folder=tmp_path / "parts").counts(material, arm, 8)
    again = Bench(folder=tmp_path / "parts")
    monkeypatch.setattr(Bench, "replay", None)
    kept = again.counts(material, arm, 8)
    for name in ("hits", "loads", "tokens", "window_variance"):
        assert np.array_equal(getattr(kept, name), getattr(found, name), equal_nan=name == "window_variance")
    again.clear()
    assert not (tmp_path / "parts").exists()


def test_description_of_a_configuration() -> None:
    assert described(paper("x", step=4, transforms="phase")) == "transforms=phase, step=4"
    assert described(paper("x")) == "the defaults"
