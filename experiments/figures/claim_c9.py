"""C9: what remains of rotation against its controls."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.suites.claim.drawing import dots

NAME = "claim_c9"
TITLE = "C9: does rotation itself matter"
ORDER = 209
GUIDE = "Two slots a step for every arm. Rotation is credited only if calibrated W_r is above every control without it."


def draw(table: pd.DataFrame, figure: Figure) -> None:
    dots(table, figure, NAME, ["hit_rate", "loads_per_token"], "")
