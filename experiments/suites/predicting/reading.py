"""Rows of results one by one."""

from collections.abc import Iterator
from typing import Any

import pandas as pd


def each(found: pd.DataFrame) -> Iterator[Any]:
    """The rows, columns as attributes."""
    yield from found.itertuples()
