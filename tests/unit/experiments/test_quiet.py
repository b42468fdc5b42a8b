"""Runs that are disturbed are made again until patience is at its end; everything by a clock of the test's own."""

from collections.abc import Iterator

from rgpu.experiments.benching.quiet import SAMPLE_S, Quiet, busy_seconds


class Machine:
    """Time passes only in `sleep` and in runs of a second; others use `cores` of each step, in turn."""

    def __init__(self, cores: Iterator[float]) -> None:
        self.cores, self.now_s, self.total, self.own = cores, 0.0, 0.0, 0.0

    def spend(self, seconds: float, own: float = 0.0) -> None:
        self.now_s += seconds
        self.own += own * seconds
        self.total += own * seconds + next(self.cores) * seconds

    def run(self) -> float:
        self.spend(1.0, own=1.3)
        return self.now_s

    def quiet(self, patience_s: float) -> Quiet:
        return Quiet(0.25, patience_s, lambda: (self.total, self.own), lambda: self.now_s, self.spend)


def test_a_quiet_machine_waits_for_nothing() -> None:
    there = Machine(iter([0.0, 0.1]))
    found = there.quiet(60.0)
    assert found.run(there.run) == 1.0 + SAMPLE_S
    assert found.patience_s == 60.0
    assert round(found.others[0], 6) == 0.1


def test_quiet_is_waited_for_and_a_disturbed_run_made_again() -> None:
    there = Machine(iter([1.0, 1.0, 0.0, 0.9, 0.0, 0.2]))  # two busy looks, a quiet one, a disturbed run; a look, a run
    found = there.quiet(60.0)
    assert round(found.run(there.run), 6) == round(2.0 + 4 * SAMPLE_S, 6)
    assert [round(v, 6) for v in found.others] == [0.2]
    assert 58.0 < found.patience_s < 59.0


def test_patience_ends() -> None:
    there = Machine(iter([1.0] * 20))
    found = there.quiet(0.5)
    found.run(there.run)
    assert found.patience_s <= 0.25 and [round(v, 6) for v in found.others] == [1.0]
    before = there.now_s
    found.run(there.run)
    assert there.now_s <= before + 1.0 + 2 * SAMPLE_S


def test_where_nobody_knows_nothing_is_waited_for() -> None:
    found = Quiet(0.25, 60.0, lambda: None)
    assert found.run(lambda: 7) == 7 and found.others == [0.0]
    known = busy_seconds()
    assert known is None or known[0] >= 0
