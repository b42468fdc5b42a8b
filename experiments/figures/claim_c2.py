"""C2: how much misses rise when the topic changes."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.suites.claim.drawing import dots

NAME = "claim_c2"
TITLE = "C2: surge of misses at a change of topic"
ORDER = 202
GUIDE = "Right of zero: misses rise at the switch. The claim expects static_hot far to the right and rotary near zero."


def draw(table: pd.DataFrame, figure: Figure) -> None:
    dots(table, figure, NAME, ["surge"], "40 tokens on each side of the switch. Clusters: pairs of documents.")
