"""C7: a fixed against an adaptive step."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.suites.claim.drawing import dots

NAME = "claim_c7"
TITLE = "C7: stability of the hit rate"
ORDER = 207
GUIDE = "Lower is steadier. The claim expects a smaller variance with the adaptive step, at no cost in hits."


def draw(table: pd.DataFrame, figure: Figure) -> None:
    dots(table, figure, NAME, ["window_variance", "hit_rate"], "Windows of 32 tokens inside a sequence.")
