"""C3: misses after an earlier topic comes back."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.suites.claim.drawing import dots

NAME = "claim_c3"
TITLE = "C3: recovery when a topic returns"
ORDER = 203
GUIDE = "Lower is better. The claim expects return on to be below return off and LRU."


def draw(table: pd.DataFrame, figure: Figure) -> None:
    dots(
        table,
        figure,
        NAME,
        ["miss_after_return"],
        "The 40 tokens after the return; the similarity threshold was chosen on other texts.",
    )
