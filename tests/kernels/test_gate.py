"""The compile gate on toy kernels: what it reads from machine code, and what it refuses. Nothing here needs a GPU."""

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rgpu.errors import InputError
from rgpu.kernels.gate import gate, listings, table
from rgpu.kernels.gate.flow import Listing, main_loop, natural_loops
from rgpu.kernels.gate.judge import faults, row_of
from rgpu.kernels.gate.pool import Answer, Job, compile_all, site_of
from rgpu.kernels.gate.shipped import Listed, collect
from rgpu.kernels.gate.targets import VERSIONS

ROOT = Path(__file__).resolve().parents[2]
TOYS = "tests.kernels.gate_toys"
pytest.importorskip("triton", reason="Triton is for Linux only")
VERSION = importlib.metadata.version("triton")
COMPILED = [
    *(("gemv", target) for target in ("sm90", "sm120", "gfx942", "gfx1100")),
    *(("dot", target) for target in ("sm90", "sm100", "gfx1100")),
    *((name, "sm90") for name in ("gemv/narrow", "gemv/starved", "gemv/mistaken", "flush", "wrong")),
    ("gemv/flushing", "gfx942"),
]


@pytest.fixture(scope="module")
def entries() -> dict[str, Listed]:
    return {one.entry.name: one for one in collect((TOYS,), ROOT)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("listings")


@pytest.fixture(scope="module")
def answers(kept: Path) -> dict[tuple[str, str], Answer]:
    """All of COMPILED, by two workers that inherit TRITON_INTERPRET."""
    jobs = [Job(TOYS, name, target, VERSION, str(kept)) for name, target in COMPILED]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        found = compile_all(jobs, ROOT, timeout_s=60)
    return {(job.name, job.target): answer for job, answer in found.items()}


def text_of(kept: Path, name: str, target: str, kind: str) -> str:
    return (kept / f"{name.replace('/', '_')}.{target}.{VERSION}.{kind}").read_text()


def faults_of(one: Listed, target: str, answer: Answer, per_weight: float | None = None) -> list[str]:
    row = row_of(one, target, VERSION, answer.values)
    return faults(one, row, answer.values, None if per_weight is None else replace(row, per_weight=per_weight))


@pytest.mark.parametrize(("name", "target"), [pair for pair in COMPILED if pair[0] in ("gemv", "dot")])
def test_sound_kernels_pass(
    answers: dict[tuple[str, str], Answer], entries: dict[str, Listed], name: str, target: str
) -> None:
    assert answers[name, target].error == ""
    assert faults_of(entries[name], target, answers[name, target]) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemv/starved", "spills: "),
        ("gemv/narrow", "weights are not loaded 128 bits at a time"),
        ("gemv/mistaken", "no matrix instruction in the main loop"),
        ("gemv/mistaken", "expected a multiple of 24 "),
    ],
)
def test_each_defect_is_named(
    answers: dict[tuple[str, str], Answer], entries: dict[str, Listed], name: str, said: str
) -> None:
    assert any(said in fault for fault in faults_of(entries[name], "sm90", answers[name, "sm90"]))


def test_limits_hold(answers: dict[tuple[str, str], Answer], entries: dict[str, Listed]) -> None:
    one, answer = entries["gemv"], answers["gemv", "sm90"]
    tight = replace(one, entry=replace(one.entry, max_registers=int(str(answer.values["registers"])) - 1))
    assert "registers a lane; allowed" in faults_of(tight, "sm90", answer)[0]
    large = Answer({**answer.values, "shared": (99 << 10) + 1})
    assert faults_of(one, "sm90", large) == []
    assert "bytes of shared memory" in faults_of(one, "sm89", large)[0]


def test_arithmetic_that_flushes_subnormals_is_seen(
    answers: dict[tuple[str, str], Answer], entries: dict[str, Listed]
) -> None:
    """On NVIDIA by the instruction, on AMD by the mode the kernel starts in."""
    assert faults_of(entries["flush"], "sm90", answers["flush", "sm90"]) == [
        "1 instructions of the main loop flush subnormals"
    ]
    mode, values = "gemv/flushing", answers["gemv/flushing", "gfx942"].values
    assert values["flushing"] == values["instructions"]
    assert "flush subnormals" in faults_of(entries[mode], "gfx942", answers[mode, "gfx942"])[0]


@pytest.mark.parametrize("target", ["sm90", "sm120", "gfx942", "gfx1100"])
def test_fused_products_are_seen(
    answers: dict[tuple[str, str], Answer], entries: dict[str, Listed], target: str
) -> None:
    one = replace(entries["gemv"], entry=replace(entries["gemv"].entry, wants=("rounded",)))
    assert "add products that were not rounded" in faults_of(one, target, answers["gemv", target])[0]


def test_a_compiler_s_error_is_one_line(answers: dict[tuple[str, str], Answer]) -> None:
    error = answers["wrong", "sm90"].error
    assert error.startswith("CompilationError") and "\n" not in error


def test_a_rise_over_the_table_fails(answers: dict[tuple[str, str], Answer], entries: dict[str, Listed]) -> None:
    one, answer = entries["gemv"], answers["gemv", "sm90"]
    cost = row_of(one, "sm90", VERSION, answer.values).per_weight
    assert cost is not None
    assert faults_of(one, "sm90", answer, cost / 1.04) == []
    assert "instructions per weight; the table has" in faults_of(one, "sm90", answer, cost / 1.06)[0]


def test_the_numbers_are_those_of_the_machine_code(
    answers: dict[tuple[str, str], Answer], kept: Path, entries: dict[str, Listed]
) -> None:
    """A lane loads two rows of 16 weights in an iteration, so half the wide loads are the iterations of a pass."""
    for target, kind, wide in (("sm90", "sass", r"LDG\.E\.128"), ("gfx942", "amdgcn", "global_load_dwordx4")):
        text = text_of(kept, "gemv", target, kind)
        loop = main_loop(listings.sass(text) if kind == "sass" else listings.amdgcn(text))
        read = listings.sass(text) if kind == "sass" else listings.amdgcn(text)
        values, lanes = answers["gemv", target].values, 128 if kind == "sass" else 256
        loads = sum(re.match(wide, read.code[at].opcode) is not None for at in loop.at)
        assert values["unroll"] == loads * lanes * 16 / 4096 > 0
        assert values["instructions"] == len(loop.at) > 100
        cost = row_of(entries["gemv"], target, VERSION, values).per_weight
        assert cost == pytest.approx(len(loop.at) * lanes / 4096 / values["unroll"], abs=1e-3)
    assert answers["gemv", "gfx1100"].values["registers"] == int(
        re.findall(r"NumVgprs: (\d+)", text_of(kept, "gemv", "gfx1100", "amdgcn"))[0]
    )


def test_loops_are_those_llvm_names(kept: Path, answers: dict[tuple[str, str], Answer]) -> None:
    """LLVM marks the head of each loop by a comment, in PTX and in AMD's assembly."""
    assert answers
    for name, target, kind in (("gemv", "sm120", "ptx"), ("dot", "sm90", "ptx"), ("dot", "gfx1100", "amdgcn")):
        text = text_of(kept, name, target, kind)
        read = listings.ptx(text) if kind == "ptx" else listings.amdgcn(text)
        heads = {label for label in re.findall(r"(?m)^(\S+):.*This Inner Loop Header", text)}
        named = {label for label, places in read.labels.items() if heads_of(read).intersection(places)}
        assert heads and heads <= named and len(heads) == len(natural_loops(read))


def heads_of(read: Listing) -> set[int]:
    """Instructions of loops that something outside the loop leads to."""
    return {
        to
        for loop in natural_loops(read)
        for at in range(len(read.code))
        if at not in loop
        for to in read.followers(at)
        if to in loop
    }


def test_a_block_that_waits_out_of_line_is_no_loop(kept: Path, answers: dict[tuple[str, str], Answer]) -> None:
    """Blackwell's kernels wait in blocks after the exit, from where they jump back over most of the code."""
    text = text_of(kept, "dot", "sm100", "sass")
    read = listings.sass(text)
    loop = main_loop(read)
    back = [(read.labels[i.jumps[0]][0], at) for at, i in enumerate(read.code) if i.opcode == "BRA" and i.jumps]
    exits = [at for at, i in enumerate(read.code) if i.opcode == "EXIT"]
    assert any(to < at for to, at in back if at > exits[0])
    assert loop.loops and answers["dot", "sm100"].values["matrix"] == "UTCHMMA"
    assert all(read.code[at].opcode != "EXIT" for at in loop.at)


def test_a_compilation_without_end_is_killed_and_the_next_one_runs() -> None:
    jobs = [Job(TOYS, name, "sm90", VERSION) for name in ("endless", "wrong")]
    found = compile_all(jobs, ROOT, timeout_s=6, workers=1)
    assert found[jobs[0]].error == "timed out after 6 s"
    assert found[jobs[1]].error.startswith("CompilationError")


def test_the_other_version_compiles_in_its_own_process(entries: dict[str, Listed]) -> None:
    other = next(version for version in VERSIONS if version != VERSION)
    try:
        site_of(other)
    except InputError as error:
        pytest.skip(str(error))
    job = Job(TOYS, "gemv", "sm90", other)
    assert faults_of(entries["gemv"], "sm90", compile_all([job], ROOT, timeout_s=60)[job]) == []


def test_names_are_unique() -> None:
    with pytest.raises(InputError, match="expected unique names"):
        collect((TOYS, TOYS), ROOT)


def test_a_version_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="expected 0.0.1; run make kernels-gate"):
        site_of("0.0.1")


class Compilers:
    """Stands for `compile_all`: real answers for the targets the tests compile, and a record of what was asked."""

    def __init__(self, answers: dict[tuple[str, str], Answer]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []

    def __call__(self, jobs: Sequence[Job], root: Path, *, budget_s: float, **_: object) -> dict[Job, Answer]:
        self.asked = [(job.name, job.target) for job in jobs] if budget_s else []
        return {job: self.answers[job.name, job.target] for job in jobs} if budget_s else {}


@pytest.fixture
def compilers(answers: dict[tuple[str, str], Answer], monkeypatch: pytest.MonkeyPatch) -> Compilers:
    """The gate over "gemv" for three targets and one version of Triton, with answers compiled before."""
    stand_in = Compilers(answers)
    real = collect((TOYS,), ROOT)[0]
    second = replace(real.entry, name="gemv/starved", targets=("sm90",))
    shipped = [
        replace(real, entry=replace(real.entry, targets=("sm90", "sm120", "gfx942"))),
        replace(real, entry=second),
    ]
    stand_in.answers = {**answers, ("gemv/starved", "sm90"): answers["gemv", "sm90"]}
    monkeypatch.setattr(gate, "compile_all", stand_in)
    monkeypatch.setattr(gate, "collect", lambda modules, root: shipped)
    monkeypatch.setattr(gate, "VERSIONS", (VERSION,))
    return stand_in


EVERY = [("gemv", "sm90"), ("gemv", "sm120"), ("gemv", "gfx942"), ("gemv/starved", "sm90")]
ALWAYS = [("gemv", "sm90"), ("gemv", "gfx942")]


def test_the_table_decides_what_is_compiled(compilers: Compilers, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    assert gate.run(gate.Asked(update=True), (), ROOT, path).failures == []
    assert sorted(compilers.asked) == sorted(EVERY)
    assert {(row.name, row.target) for row in table.read(path).values()} == set(EVERY)
    assert "| gemv | " in path.with_name("TABLE.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["TABLE.md", "table.json"]

    assert gate.run(gate.Asked(), (), ROOT, path).failures == []
    assert compilers.asked == ALWAYS
    rows = table.read(path)
    table.write(path, [replace(row, source="older") if row.target == "sm120" else row for row in rows.values()])
    assert gate.run(gate.Asked(), (), ROOT, path).failures == []
    assert compilers.asked == [*ALWAYS, ("gemv", "sm120")]
    gate.run(gate.Asked(full=True), (), ROOT, path)
    assert sorted(compilers.asked) == sorted(EVERY)


def test_what_the_table_cannot_answer_for_fails(compilers: Compilers, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    late = gate.run(gate.Asked(budget_s=0), (), ROOT, path)
    assert len(late.failures) == len(EVERY) and "not compiled in time" in late.failures[0]
    gate.run(gate.Asked(update=True), (), ROOT, path)
    rows = table.read(path)
    table.write(path, [*rows.values(), replace(next(iter(rows.values())), name="gone")])
    assert [f for f in gate.run(gate.Asked(), (), ROOT, path).failures if "gone" in f and "not shipped" in f]
    gate.run(gate.Asked(update=True), (), ROOT, path)
    assert table.read(path) == rows
    cheap = [replace(row, per_weight=1.0) if row.target == "sm90" else row for row in rows.values()]
    table.write(path, cheap)
    assert ["the table has 1.00" in failure for failure in gate.run(gate.Asked(), (), ROOT, path).failures] == [True]
    assert gate.run(gate.Asked(update=True), (), ROOT, path).failures == []
    assert table.read(path)["gemv", "sm90", VERSION].per_weight == rows["gemv", "sm90", VERSION].per_weight


def test_a_kernel_that_fails_leaves_the_table(compilers: Compilers, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    gate.run(gate.Asked(update=True), (), ROOT, path)
    compilers.answers["gemv", "gfx942"] = Answer({}, "timed out after 30 s")
    wish = gate.Asked(update=True, only="gemv")
    assert [f for f in gate.run(wish, (), ROOT, path).failures if "gfx942" in f and "timed out" in f]
    assert {(row.name, row.target) for row in table.read(path).values()} == set(EVERY) - {("gemv", "gfx942")}
