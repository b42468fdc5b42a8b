"""C8: traffic and adaptation of the modes."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.suites.claim.drawing import dots

NAME = "claim_c8"
TITLE = "C8: modes"
ORDER = 208
GUIDE = (
    "Equal slots in all; each pool stages one expert, so compare inside one kind of pool. The claim expects hits and loads "
    "to fall from per layer over groups to synchronised."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    dots(table, figure, NAME, ["hit_rate", "loads_per_token"], "")
