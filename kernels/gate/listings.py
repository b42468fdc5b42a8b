"""Readers of the three kinds of listing: SASS of cuobjdump, PTX, and the assembly of AMD's compiler."""

import re

from rgpu.kernels.gate.flow import Instruction, Listing

_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_SASS_BYTES = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_PTX_LOAD = re.compile(r"^ld\.global\S*?(?:\.v(\d))?\.[busf](\d+)$")
_PTX_LOC = re.compile(r"^\.loc\s+(\d+)\s+(\d+)\s+\d+(?:.*inlined_at\s+(\d+)\s+(\d+))?")
_AMD_LOAD = re.compile(r"^(?:global|buffer|flat)_load_(?:lds_)?(?:(?:dword|b)(x?\d*)|(\w+))")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]+)"(?:\s+"([^"]+)")?', re.MULTILINE)


def sass(text: str) -> Listing:
    """A listing of `cuobjdump -sass`; labels are addresses. A call is taken to return."""
    code: list[Instruction] = []
    labels: dict[str, list[int]] = {}
    joins: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        found = _SASS.match(line)
        if not found:
            continue
        address, guard, opcode, operands = found.groups()
        name = opcode.partition(".")[0]
        places = tuple(f"0x{int(place, 16):x}" for place in re.findall(r"\b0x[0-9a-f]+", operands))
        conditional = guard is not None or (name == "BRA" and "," in operands)
        jumps: tuple[str, ...] = ()
        if name == "BSSY":
            joins[operands.partition(",")[0].strip()] = places[-1:]
        elif name == "BSYNC":
            jumps = joins.get(operands.strip(), ())
        elif name in ("BRA", "JMP"):
            jumps = places[-1:]
        ends = name in ("EXIT", "RET", "BRX", "JMX") or (bool(jumps) and name != "BSYNC")
        load = name in ("LDG", "LDGSTS")
        width = next((_SASS_BYTES[part] for part in opcode.split(".") if part in _SASS_BYTES), 4) if load else 0
        labels[f"0x{int(address, 16):x}"] = [len(code)]
        code.append(Instruction(opcode, jumps, conditional or not ends, width))
    return Listing(code, labels)


def ptx(text: str) -> Listing:
    """A PTX module with one entry.

    Each line of an inline assembly block has its own .loc, one further down the source than the last; only the block's
    first says where it comes from.
    """
    files = _files(text)
    code: list[Instruction] = []
    labels: dict[str, list[int]] = {}
    lines: tuple[tuple[str, int], ...] = ()
    frozen = in_block = False
    for line in text[text.index(".entry") :].splitlines():
        if "// begin inline asm" in line or "// end inline asm" in line:
            in_block, frozen = "begin" in line, False
        line = line.partition("//")[0].strip()
        location = _PTX_LOC.match(line)
        if location and not frozen:
            first, at, outer, outer_at = location.groups()
            lines = ((files.get(first, ""), int(at)),) + (((files.get(outer, ""), int(outer_at)),) if outer else ())
            frozen = in_block
        for statement in line.split(";"):
            statement = statement.strip("{} \t")
            label = re.match(r"^([\w$]+):\s*(.*)", statement)
            if label:
                labels.setdefault(label[1], []).append(len(code))
                statement = label[2].strip("{} \t")
            if statement and not statement.startswith((".", ")")):
                code.append(_ptx_instruction(statement, lines))
    return Listing(code, labels)


def _ptx_instruction(statement: str, lines: tuple[tuple[str, int], ...]) -> Instruction:
    guard, rest = re.match(r"(@\S+\s+)?(.*)", statement, re.DOTALL).groups()  # type: ignore[union-attr]
    opcode, operands = (*rest.split(maxsplit=1), "")[:2]
    load = _PTX_LOAD.match(opcode)
    width = int(load[1] or 1) * int(load[2]) // 8 if load else 0
    if re.match(r"cp\.async\.c[ag]\.shared", opcode):
        width = int(operands.split(",")[2].strip(), 0)
    jumps = (operands,) if opcode.startswith("bra") else ()
    ends = bool(jumps) or opcode in ("ret", "exit")
    return Instruction(opcode, jumps, guard is not None or not ends, width, lines)


def amdgcn(text: str) -> Listing:
    """The kernel in an assembly file of LLVM for AMD, up to its end."""
    files = _files(text)
    code: list[Instruction] = []
    labels: dict[str, list[int]] = {}
    lines: tuple[tuple[str, int], ...] = ()
    name = re.search(r"\.globl\s+(\S+)", text)
    body = text.split(f"\n{name[1]}:", 1)[1] if name else ""
    for line in body.splitlines():
        line = line.partition(";")[0].strip()
        location = re.match(r"\.loc\s+(\d+)\s+(\d+)", line)
        if location:
            lines = ((files.get(location[1], ""), int(location[2])),)
        elif line.startswith(".Lfunc_end"):
            break
        elif line.endswith(":"):
            labels.setdefault(line[:-1], []).append(len(code))
        elif re.match(r"[a-z]", line):
            opcode, _, operands = line.partition(" ")
            if opcode == "v_fma_mix_f32" and re.match(r"(\S+, ){3}neg\(0\)", operands):
                opcode = "v_mul_mix_f32"  # no such mnemonic: how halves are widened and multiplied, adding nothing
            jumps = (operands.strip(),) if opcode.startswith(("s_branch", "s_cbranch")) else ()
            falls = opcode not in ("s_branch", "s_endpgm", "s_setpc_b64")
            code.append(Instruction(opcode, jumps, falls, _amd_bytes(opcode), lines))
    return Listing(code, labels)


def _amd_bytes(opcode: str) -> int:
    load = _AMD_LOAD.match(opcode)
    if not load:
        return 0
    words, small = load.groups()
    if words is None:
        return 1 if re.search("byte|[ui]8", small) else 2
    return 4 * int(words[1:] or 1) if words.startswith("x") else int(words or 32) // 8


def _files(text: str) -> dict[str, str]:
    """Number -> file name, without its folder, of a listing's .file lines."""
    return {number: (second or first).rpartition("/")[2] for number, first, second in _FILE.findall(text)}
