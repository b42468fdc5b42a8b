"""C6: one against several heads."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.suites.claim.drawing import dots

NAME = "claim_c6"
TITLE = "C6: heads over the same slots"
ORDER = 206
GUIDE = "Right is better on the left panel. The claim expects more heads to hit more, over the same slots."


def draw(table: pd.DataFrame, figure: Figure) -> None:
    dots(table, figure, NAME, ["hit_rate", "loads_per_token"], "")
