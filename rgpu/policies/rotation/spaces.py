"""Switching mode's two spaces: signatures taken in each layer's own input, and in that of the pool's first layer.

One is in use, in the rows that every transform reads; the other waits in spare rows. They change places with the mode.
"""

from rgpu.policies.loop import hook
from rgpu.policies.rotation import state as s


@hook
def exchange(m, f):
    """Swap signatures, biases, angles, axes, centres and ring ranks with the spare ones."""
    keys = m[s.INTS, s.KEYS]
    row = m[s.LIVE, s.SIGNATURE]
    for key in range(row, row + keys):
        for i in range(f.shape[1]):
            kept = f[key, i]
            f[key, i] = f[key + keys, i]
            f[key + keys, i] = kept
    spare = m[s.LIVE, s.SPARE]
    heads = m[s.INTS, s.HEADS]
    for at in range(2 + s.HEAD_ROWS * heads):
        own = s.CENTRE_X + at if at < 2 else s.FIXED + at - 2
        for i in range(keys):
            kept = f[own, i]
            f[own, i] = f[spare + at, i]
            f[spare + at, i] = kept
    for head in range(heads):
        for i in range(keys):
            place = m[s.RANK + head, i]
            m[s.RANK + head, i] = m[m[s.LIVE, s.SPARE_RANK] + head, i]
            m[m[s.LIVE, s.SPARE_RANK] + head, i] = place
    m[s.LIVE, s.USED] = 1 - m[s.LIVE, s.USED]
