"""What the compile gate reads: listings, tables, arguments and lists of kernels. Nothing here compiles."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rgpu.errors import InputError
from rgpu.kernels.gate import gate, listings, table
from rgpu.kernels.gate.flow import main_loop, natural_loops
from rgpu.kernels.gate.shipped import Shipped, collect, exports, marked_lines, source_hash

ROOT = Path(__file__).resolve().parents[2]
TOYS = "tests.kernels.gate_toys"
ENTRY = Shipped("gemv", TOYS, "gemv", {"x_ptr": "*fp32"}, {"K": 1024}, 4, 3, 4096)

SASS = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   IADD3 R9, R9, 0x1, RZ ;
        /*0020*/                   LDG.E.U8 R4, desc[UR4][R2.64] ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64] ;
        /*0040*/              @!P1 BRA 0xb0 ;
        /*0050*/                   FFMA.FTZ R0, R1, R2, R3 ;
        /*0060*/               @P0 BRA 0x20 ;
        /*0070*/                   BRA.U UP0, 0x10 ;
        /*0080*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0;
        /*00b0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R5 ;
        /*00c0*/              @!P1 BRA 0xb0 ;
        /*00d0*/                   BRA 0x50 ;
        /*00e0*/                   NOP;
"""


def test_nested_loops_waits_and_padding() -> None:
    read = listings.sass(SASS)
    assert sorted(map(sorted, natural_loops(read))) == [
        [1, 2, 3, 4, 5, 6, 7, 11, 12, 13], [2, 3, 4, 5, 6, 11, 12, 13], [11, 12],
    ]  # fmt: skip
    assert main_loop(read).at == (2, 3, 4, 5, 6, 11, 12, 13)
    assert [i.load_bytes for i in read.code[:4]] == [16, 0, 1, 16]
    straight = main_loop(listings.sass("\n".join(line for line in SASS.splitlines() if "BRA" not in line)))
    assert not straight.loops and straight.at == tuple(range(7))


@pytest.mark.parametrize(
    ("line", "width"),
    [
        ("ld.global.L1::evict_first.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", 16),
        ("@%p1 ld.global.v2.b64 { %rd1, %rd2 }, [ %rd3 + 0 ];", 16),
        ("ld.global.u8 \t%rs1, [%rd1];", 1),
        ("cp.async.cg.shared.global [ %r22 + 0 ], [ %rd16 + 0 ], 0x10, %r17;", 16),
        ("ld.param.b64 \t%rd14, [toy_param_0];", 0),
        ("st.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2, %r3, %r4 };", 0),
    ],
)
def test_loads_of_ptx(line: str, width: int) -> None:
    assert [i.load_bytes for i in listings.ptx(f".entry f()\n{{\n{line}\n}}").code] == [width]


@pytest.mark.parametrize(
    ("opcode", "width"),
    [
        ("global_load_dwordx4", 16), ("global_load_b128", 16), ("buffer_load_dwordx2", 8), ("buffer_load_ushort", 2),
        ("global_load_b32", 4), ("global_load_ubyte", 1), ("global_load_d16_u8", 1), ("global_load_d16_b16", 2),
        ("flat_load_dword", 4), ("s_load_dwordx4", 0), ("global_store_dwordx4", 0), ("ds_load_b128", 0),
    ],
)  # fmt: skip
def test_loads_of_amd(opcode: str, width: int) -> None:
    text = f"\t.globl\tf\nf:\n\t{opcode} v[0:3], v[4:5], off\n\ts_endpgm\n.Lfunc_end0:\n"
    assert [i.load_bytes for i in listings.amdgcn(text).code] == [width, 0]


def test_a_product_of_halves_on_amd_is_no_sum() -> None:
    lines = (f"\tv_fma_mix_f32 v1, v2, v3, {added} op_sel_hi:[1,0,0]\n" for added in ("neg(0)", "v4"))
    text = ".globl f\nf:\n" + "".join(lines)
    assert [i.opcode for i in listings.amdgcn(text).code] == ["v_mul_mix_f32", "v_fma_mix_f32"]


def test_a_broken_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('[{"name": "gemv"}]')
    with pytest.raises(InputError, match="expected rows of the gate"):
        table.read(tmp_path / "table.json")


def test_arguments() -> None:
    assert gate.asked(["full=1", "only=int4", "workers=3"]) == gate.Asked(full=True, only="int4", workers=3)
    for wrong in ("ful=1", "workers=many"):
        with pytest.raises(InputError, match="expected some of full, update"):
            gate.asked([wrong])


def test_entries_name_known_targets_and_wants() -> None:
    for wrong in ({"targets": ("sm70",)}, {"wants": ("speed",)}):
        with pytest.raises(InputError, match="expected some of"):
            Shipped(**{**asdict(ENTRY), **wrong})
    with pytest.raises(InputError, match="got neither SHIPPED nor shipped"):
        collect(("rgpu.kernels.gate.targets",), ROOT)


def test_modules_with_a_list_are_found_without_importing_them() -> None:
    assert exports("SHIPPED: tuple = ()") and exports("SHIPPED = ()") and exports("def shipped():\n    return ()")
    assert not exports("def f():\n    SHIPPED = ()")


def test_the_hash_follows_device_functions(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "a.py").write_text("from rgpu.kernels import b\nfrom rgpu.kernels.gate.shipped import Shipped\n")
    (folder / "b.py").write_text("from rgpu.kernels.c import f\n")
    device = "import triton\nN = 1\nM = 1\n@triton.jit\ndef f(): return 1 + N\ndef launch(): return 1\nSHIPPED = ()\n"
    (folder / "c.py").write_text(device)
    (folder / "d.py").write_text("def g(): return 1\n")
    entry = replace(ENTRY, module="rgpu.kernels.a")
    before = source_hash(entry, tmp_path)
    (folder / "d.py").write_text("def g(): return 2\n")
    assert source_hash(entry, tmp_path) == before
    (folder / "c.py").write_text(
        device.replace("M = 1", "M = 2").replace("return 1\n", "return 2\n").replace("()\n", "(1,)\n")
    )
    assert source_hash(entry, tmp_path) == before  # a launcher, a list, a constant that no kernel names
    hashes = {before, source_hash(replace(entry, num_stages=4), tmp_path)}
    for old, new in (("1 + N", "2 + N"), ("N = 1", "N = 2")):
        (folder / "c.py").write_text(device.replace(old, new))
        hashes.add(source_hash(entry, tmp_path))
    assert len(hashes) == 4


def test_marks_cover_a_statement_of_several_lines(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text(
        "def f():\n    x = load(1)\n    if x:\n        w = load(\n            2,\n        )  # weights\n"
        "    return load(3)  # weights\n"
    )
    entry = replace(ENTRY, module="rgpu.kernels.a")
    assert marked_lines(entry, tmp_path) == {("a.py", 4), ("a.py", 5), ("a.py", 6), ("a.py", 7)}
