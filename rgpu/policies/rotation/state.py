"""Where the rotary family keeps its state: rows and columns of m and f. Legend: E experts a layer, F feature width.

A pool may hold several layers. What belongs to a layer sits in the columns of its keys, from `first`, the key of its
expert 0: one value an expert in column first + e, one a head in first + head, one a layer in first.
"""

from rgpu.policies.loop import OWN

MOST_HEADS = 8
BUFFER_LENGTH, SHORT = 64, 16  # events of routing kept; the newest of them that are compared with all
TRAJECTORY_ROWS = 256  # rows of f set aside for the E x E signatures of routing trajectories

# Rows of m.
OWNER = OWN  # [key] head whose slot holds it
MARK = OWN + 1  # [key] stamp of the last `wish` that chose or gave it up
WISH_HEAD = OWN + 2  # [j] head that wants m[WANT, j]
INTS = OWN + 3  # registers, below
LIVE = OWN + 4  # registers that change, below
LEFT = OWN + 5  # [layer] slots that may still change before the next decision
MISSES = OWN + 6  # [layer] consecutive events with a miss
COUNT = OWN + 7  # [layer] events in the routing buffer's history
ENTRY = OWN + 8  # [layer] 1 + entry of the return memory that the layer is at, 0: none
OLDEST = OWN + 9  # [layer] entry of the return memory that is written next
PLACE = OWN + 10  # [head] place on the ring
RANK = OWN + 11  # + head: [key] index on that head's ring
MEMORY = RANK + MOST_HEADS  # + 2 * entry: [key] 1 + owner in the stored set, 0: absent; + 2 * entry + 1: [head] place

# Columns of m[INTS]: set once.
(EXPERTS, KEYS, HEADS, TRANSFORMS, STANDARD, DIRECTION, AHEAD, SHARED, KEEP, ADAPTIVE, ONLINE, DEPTH, RETURN_STEP,
 STORM, POOLING) = range(15)  # fmt: skip
# Columns of m[LIVE]: the first four are set once (offsets of blocks of f, cycle), the rest change; SPARE, SPARE_RANK and
# USED are of switching mode only: the rows of the spare space, and whether the joint one is in use.
(SIGNATURE, TRAJECTORY, BUFFER, CYCLE, CYCLE_NOW, WINDOW, FROM, TO, PHASE, HEAD, WISHES, AT, STAMP, FIRST, JOINT, SPARE,
 SPARE_RANK, USED) = range(18)  # fmt: skip

PROJECTION, PHASE_ROTATION, CYCLIC, TRAJECTORIES = 1, 2, 4, 8  # bits of TRANSFORMS
STEP_BIT, CYCLE_BIT, WINDOW_BIT = 1, 2, 4  # bits of ADAPTIVE
BY_SIGN, FORWARD, REVERSE = 0, 1, -1  # DIRECTION
PER_LAYER, TOGETHER, SWITCHING = 0, 1, 2  # SHARED
NO_PHASE, ON_DEMAND, WISHING = 0, 1, 2  # PHASE: why a key is being placed

# Rows of f.
NUMBERS, MORE = 0, 1  # registers, below
NOW = 2  # registers that change, below
LAST = 3  # [F] feature of the last decision of the pool's first layer
TEMP_A, TEMP_B = 4, 5  # [F] scratch
PARTIAL = 6  # [layer] fraction of a slot saved up
THETA = 7  # [head] last phase
CENTRE_X, CENTRE_Y = 8, 9  # [head] origin of the plane
PROJECTED = 10  # [key] projection on the signatures, all heads together
SCRATCH, MEAN = 11, 12  # [key] one transform's values; pooled routing
LATELY, LONGER = 13, 14  # [key] routing summed over the newest SHORT events, and over all BUFFER_LENGTH
FREQUENCY, RECENCY = 15, 16  # [key] only rotary_hybrid writes and reads these
FIXED = 17
SCORE, BIAS, ANGLE, AXIS_X, AXIS_Y = range(FIXED, FIXED + 5)  # + 5 * head: [key]
HEAD_ROWS = 5

# Columns of f[NUMBERS].
(WEIGHT_PROJECTION, WEIGHT_PHASE, WEIGHT_CYCLIC, WEIGHT_TRAJECTORY, STEP, STEP_HIGH, STEP_LOW, STEP_SURGE, DISTANCE_HIGH,
 DISTANCE_LOW, ENTROPY_SURGE, HIT_RATE_HIGH, HIT_RATE_SCALE, TAU, FLOOR) = range(15)  # fmt: skip
# Columns of f[MORE].
(RATE, ONLINE_BELOW, SWITCH_BELOW, KL, CYCLE_ENTROPY, AVERAGE, SHORT_WINDOW, LONG_WINDOW, WEIGHT_RECENCY,
 WEIGHT_FREQUENCY, HALF_LIFE) = range(11)  # fmt: skip
# Columns of f[NOW].
HIT_RATE, ENTROPY, USUAL_ENTROPY, STEP_NOW, DISTANCE, DIVERGENCE = range(6)


def rows(depth: int, switching: bool) -> int:
    """Rows of m that the family asks for."""
    return MEMORY - OWN + 2 * depth + (MOST_HEADS if switching else 0)


def frows(heads: int, depth: int, trajectory: bool, switching: bool) -> int:
    """Rows of f, before the signatures."""
    spare = 2 + HEAD_ROWS * heads if switching else 0
    return FIXED + HEAD_ROWS * heads + depth + spare + (BUFFER_LENGTH + TRAJECTORY_ROWS if trajectory else 0)


def spare_row(heads: int, depth: int, trajectory: bool) -> int:
    """First row of f where switching mode keeps the planes and biases of the space that is not in use."""
    return frows(heads, depth, trajectory, False)


def recalled_row(heads: int) -> int:
    """First row of f of the return memory's projections, one row an entry."""
    return FIXED + HEAD_ROWS * heads
