"""C3: misses after an earlier topic comes back."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.suites.claim.drawing import dots

NAME = "claim_c3"
TITLE = "C3: recovery when a topic returns"
ORDER = 203
GUIDE = "Lower is better. The claim expects return on below return off, and less above its settled rate than LRU."


def draw(table: pd.DataFrame, figure: Figure) -> None:
    dots(
        table,
        figure,
        NAME,
        ["miss_after_return", "return_excess"],
        "The 40 tokens after the return; threshold and depth of the memory were chosen on other documents. "
        "Clusters: pairs of documents.",
    )
