import numpy as np
import pytest

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.planning.rows import check, distances, most_likely, nearest_rows

ROWS = Forecast(np.array([5, 4, 3]), np.array([0, 0, 1]), np.zeros((3, 2), np.float32))


def test_nearest_layers_first_and_the_next_token_last() -> None:
    assert nearest_rows(ROWS, 1) == [1]
    assert nearest_rows(ROWS, 9) == [1, 0]
    assert nearest_rows(ROWS, 1, next_token=True) == [1, 2]
    assert nearest_rows(ROWS, 0) == []


def test_distances_count_layers_from_the_current_one() -> None:
    assert list(distances(ROWS, 8, 2, next_token=True)) == [(1, 1), (0, 2), (2, 8)]
    later = Forecast(np.array([4, 5]), np.array([0, 0]), np.zeros((2, 2), np.float32))  # no row of the next token
    assert list(distances(later, 8, 2)) == [(0, 1), (1, 2)]


def test_impossible_experts_are_no_candidates_and_ties_go_to_the_lowest_id() -> None:
    assert most_likely(np.array([0.0, 0.5, 0.9, 0.5], np.float32)).tolist() == [2, 1, 3]


def test_check_says_what_was_expected() -> None:
    check("x", ("width", 1, 1, np.inf), ("floor", 0.0, 0, 1))
    with pytest.raises(InputError, match=r"planner x: got width 0; expected 1 or more; set planner.width"):
        check("x", ("width", 0, 1, np.inf))
    with pytest.raises(InputError, match=r"got floor 2; expected 0 to 1"):
        check("x", ("floor", 2, 0, 1))
    with pytest.raises(InputError, match="got floor nan"):
        check("x", ("floor", float("nan"), 0, 1))
