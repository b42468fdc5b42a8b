"""Control flow of a listing: its instructions, their loops and the one that does the work."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of machine code or of PTX.

    `jumps`: labels it may branch to; `falls`: whether the next instruction may follow; `load_bytes`: what a lane reads
    from global memory (0: no such load); `lines`: (file name, line) it was compiled from, innermost first.
    """

    opcode: str
    jumps: tuple[str, ...] = ()
    falls: bool = True
    load_bytes: int = 0
    lines: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """Instructions in order, and where each label stands (a label may be used again in another scope)."""

    code: Sequence[Instruction]
    labels: dict[str, list[int]]

    def followers(self, at: int) -> list[int]:
        """Indices of the instructions that may run after the one at `at`."""
        found = [at + 1] if self.code[at].falls and at + 1 < len(self.code) else []
        for label in self.code[at].jumps:
            places = self.labels.get(label, [])
            above = [place for place in places if place <= at]
            found += [max(above)] if above and len(places) > 1 else places[:1]
        return [place for place in found if place < len(self.code)]


def natural_loops(listing: Listing) -> list[frozenset[int]]:
    """The loops as sets of instruction indices: for each back edge u -> h where h dominates u, what reaches u without h.

    A jump back that is no loop, such as the return from a block that waits out of line, is none (Aho et al., Compilers,
    section 9.6). Loops with one head are joined.
    """
    if not listing.code:
        return []
    after = [listing.followers(at) for at in range(len(listing.code))]
    heads = sorted({0} | {t for at, to in enumerate(after) for t in to if to != [at + 1]} | _ends(after))
    block_of: dict[int, int] = {}
    blocks: list[range] = []
    for start, stop in zip(heads, [*heads[1:], len(after)], strict=True):
        block_of.update(dict.fromkeys(range(start, stop), len(blocks)))
        blocks.append(range(start, stop))
    successors = [[block_of[t] for t in after[block[-1]]] for block in blocks]
    predecessors: list[list[int]] = [[] for _ in blocks]
    for block, to in enumerate(successors):
        for t in to:
            predecessors[t].append(block)
    dominators = _dominators(successors, predecessors)
    loops: dict[int, set[int]] = {}
    for block, to in enumerate(successors):
        for head in to:
            if dominators[block] >> head & 1:
                body, waiting = loops.setdefault(head, {head}), [block]
                while waiting:
                    one = waiting.pop()
                    if one not in body:
                        body.add(one)
                        waiting += predecessors[one]
    return [frozenset(at for block in body for at in blocks[block]) for body in loops.values()]


def _ends(after: list[list[int]]) -> set[int]:
    """Starts of the blocks that follow a branch or an exit."""
    return {at + 1 for at, to in enumerate(after) if to != [at + 1] and at + 1 < len(after)}


def _reached(successors: list[list[int]]) -> set[int]:
    """What can run, from 0 on."""
    found, waiting = {0} & set(range(len(successors))), [0][: len(successors)]
    while waiting:
        new = [t for t in successors[waiting.pop()] if t not in found]
        found.update(new)
        waiting += new
    return found


def _dominators(successors: list[list[int]], predecessors: list[list[int]]) -> list[int]:
    """For each block the bit set of the blocks on every path to it from block 0; 0 where none leads to it."""
    reached = _reached(successors)
    every = sum(1 << block for block in reached)
    sets = [every if block in reached else 0 for block in range(len(successors))]
    sets[0], changed = 1, True
    while changed:
        changed = False
        for block in sorted(reached - {0}):
            meet = every
            for before in predecessors[block]:
                if before in reached:
                    meet &= sets[before]
            if sets[block] != meet | 1 << block:
                sets[block], changed = meet | 1 << block, True
    return sets


@dataclass(frozen=True, slots=True)
class Body:
    """Where a kernel's work is done: indices of instructions, and whether they are a loop."""

    at: tuple[int, ...]
    loops: bool


def main_loop(listing: Listing, marked: frozenset[tuple[str, int]] = frozenset()) -> Body:
    """The main loop: of the innermost loops that read global memory (from a marked line, if one does), the longest.
    Loops that only wait are not of this kind. Without any: all that can run, without the padding."""
    loops = natural_loops(listing)
    for lines in (marked, None):
        reading = [loop for loop in loops if any(reads(listing.code[at], lines) for at in loop)]
        inner = [loop for loop in reading if not any(other < loop for other in reading)]
        if inner:
            longest = max(inner, key=len)
            return Body(tuple(sorted(longest)), True)
    return Body(tuple(sorted(_reached([listing.followers(at) for at in range(len(listing.code))]))), False)


def reads(instruction: Instruction, lines: frozenset[tuple[str, int]] | None) -> bool:
    """Whether it reads global memory and, unless `lines` is None, comes from one of them."""
    return instruction.load_bytes > 0 and (lines is None or not lines.isdisjoint(instruction.lines))
