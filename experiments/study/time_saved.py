"""When a difference of simulated time is one: half a percent of what it is held against."""

from rgpu.results.statistics import CANNOT_TELL, Interval, verdict

MARGIN = 0.005  # of the time it is held against: what counts as a difference
WORDS = {"higher": "better", "lower": "worse"}  # of time saved


def worded(gain: Interval, p: float, margin: float, sequences: int) -> str:
    """What `statistics.verdict` says of time saved: "better", "worse" or "cannot tell"."""
    return WORDS.get(verdict(gain, p, margin=margin, clusters=sequences), CANNOT_TELL)
