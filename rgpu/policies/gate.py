"""The admission plug inside the loop: which misses may take a slot at all, whatever the policy evicts by.

Chosen at run time by registers (`admission.py` sets them), so that one compiled policy serves every choice.
"""

from rgpu.policies.state import EVENT, GATE, GATE_LEFT, GATE_VALUE, REG, TRIED, hook

ALWAYS, LOW_SCORE, SECOND_HIT, CAPPED = range(4)
PARTS = 1_000_000  # a threshold on weights is held in millionths: registers are whole numbers


@hook
def open_gate(m, weights):
    """Before the misses of an event are decided."""
    if m[REG, GATE] == CAPPED:
        m[REG, GATE_LEFT] = m[REG, GATE_VALUE]
    elif m[REG, GATE] == LOW_SCORE:  # the least weight that is let in: a share of the members' mean
        total = 0.0
        for j in range(weights.shape[0]):
            total += weights[j]
        m[REG, GATE_LEFT] = int(total * m[REG, GATE_VALUE] / weights.shape[0])


@hook
def passes(m, key, weight):
    """Whether a miss may be kept; asked once a miss, after the policy agreed."""
    kind = m[REG, GATE]
    if kind == LOW_SCORE:
        return weight * PARTS >= m[REG, GATE_LEFT]
    if kind == SECOND_HIT:
        tried = m[TRIED, key]
        m[TRIED, key] = m[REG, EVENT]
        return tried > 0 and m[REG, EVENT] - tried <= m[REG, GATE_VALUE]
    if kind == CAPPED:
        m[REG, GATE_LEFT] -= 1
        return m[REG, GATE_LEFT] >= 0
    return True
