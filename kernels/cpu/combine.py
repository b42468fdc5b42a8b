"""The last kernel: the weighted sum of a token's experts, in the order of K.

Legend: T tokens, K top-k, D hidden size.
"""

from functools import cache

from rgpu.kernels.cpu.emit import F32, LANES, Emitter
from rgpu.kernels.cpu.machine import Compiled, compiled

NAME = "combine"


@cache
def combiner(hidden: int) -> Compiled:
    """The compiled combine(parts, slots, weights, out, tokens, top_k): `parts` float32 [T, K, D], of which those with a
    slot below zero are left out; `slots` int32 and `weights` float32 [T, K]; writes `out` float32 [T, D]."""
    emit = Emitter(NAME, 4, 2)
    parts, slots, weights, out, tokens, top_k = emit.arguments
    with emit.loop(0, tokens, 1) as token, emit.loop(0, hidden, LANES) as column:
        total = emit.zeros()
        with emit.loop(0, top_k, 1) as rank:
            pair = emit.add(emit.mul(token, top_k), rank)
            part = emit.load(F32, parts, emit.mul(emit.add(emit.mul(pair, hidden), column), 4))
            weight = emit.splat(emit.load(F32, weights, emit.mul(pair, 4), lanes=0))
            absent = emit.splat(emit.ir.icmp_signed("<", emit.number(slots, emit.mul(pair, 4)), emit.add(0, 0)))
            old = emit.get(total)
            emit.set(total, emit.choose(absent, old, emit.plus(old, emit.times(part, weight))))
        emit.store(emit.get(total), out, emit.mul(emit.add(emit.mul(token, hidden), column), 4))
    return compiled(emit.finish(), NAME, 4, 2)
