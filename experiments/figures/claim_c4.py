"""C4: hit rate with the record's share of experts resident."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.suites.claim.drawing import dots

NAME = "claim_c4"
TITLE = "C4: hit rate with 31 % of the experts resident"
ORDER = 204
GUIDE = (
    "The dashed line is the value the record reports for another model (80 of 256 experts, top-6), not a value of ours; "
    "the claim needs calibrated rotary above static_hot and linear_residency."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    reported = {"hit_rate": (0.925, "reported: 92.5 % (patent [0091], DeepSeek V4-Flash)")}
    dots(table, figure, NAME, ["hit_rate", "loads_per_token"], "", reported)
