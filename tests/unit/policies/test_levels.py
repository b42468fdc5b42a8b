"""Lists by level and fading scores against plain lists and exact sums."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from rgpu.policies import fading, levels
from rgpu.policies.loop import EVENT, OWN, PIN, REG, WAVE, make_state

KEYS, LEVELS = 12, 16


@pytest.mark.parametrize("seed", range(20))
def test_lists_by_level_are_lists(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = levels.level_rows(LEVELS)
    m: Any = make_state(1, KEYS, [KEYS], rows=rows + 2)[0][0]
    at = OWN + 1
    books: list[list[int]] = [[] for _ in range(LEVELS)]
    for _ in range(200):
        key, level, what = int(rng.integers(KEYS)), int(rng.choice([0, 1, 6, 7, 13, 14, 15])), rng.random()
        if what < 0.7:
            levels.link(m, at, level, key)
        elif what < 0.8:
            levels.unlink(m, at, key)
        elif what < 0.95:
            m[PIN, key] = m[REG, WAVE]
        else:
            m[REG, WAVE] += 1
        if what < 0.8:
            books = [[k for k in book if k != key] for book in books]
        if what < 0.7:
            books[level].append(key)
        for number, book in enumerate(books):
            walked: list[int] = []
            key = levels.eldest(m, at, number)
            while key >= 0 and len(walked) <= KEYS:
                free = [k for k in book[len(walked) :] if m[PIN, k] != m[REG, WAVE]]
                assert levels.next_free(m, at, key) == (free[0] if free else -1)
                walked.append(int(key))
                key = levels.younger(m, at, key)
            assert walked == book
            assert all(m[at + levels.LEVEL, k] == number + 1 for k in book)
            assert m[at + levels.ENDS + number // 7, 2 * (number % 7) + 1] == (book[-1] + 1 if book else 0)
    assert (m[OWN] == 0).all() and (m[at + rows :] == 0).all()
    assert [levels.level_rows(n) for n in (1, 7, 8, 14, 15)] == [4, 4, 5, 5, 6]


@pytest.mark.parametrize("half_life", [1, 3, 10, 64])
@pytest.mark.parametrize("seed", range(3))
def test_fading_scores_are_sums_of_powers(half_life: int, seed: int) -> None:
    rng = np.random.default_rng([seed, half_life])
    f = np.zeros((1, 2, 8))
    fading.start_clock(f, 1, half_life)
    scores, uses = [0] * 6, [[] for _ in range(6)]  # type: list[int], list[list[tuple[int, float]]]
    for time in range(1, 260):
        fading.tick(f[0], 1, time)
        assert 2.0 ** f[0, 1, fading.EPOCH] * f[0, 1, fading.NOW] == pytest.approx(2.0 ** (time / half_life), rel=1e-10)
        if time % half_life == 0:
            assert f[0, 1, fading.NOW] == 1.0
        for key in rng.choice(6, 2, p=(0.4, 0.3, 0.2, 0.06, 0.03, 0.01)):
            amount = float(rng.choice([0.0, 0.0625, 0.25, 1.0, 1.0, 3.0]))
            scores[key] = int(fading.grown(scores[key], f[0], 1, amount))
            uses[key].append((time, amount))
        worth = [sum(a * 2.0 ** ((t - time) / half_life) for t, a in used) for used in uses]
        for key, value in enumerate(worth):
            if scores[key] <= 0:
                assert value == 0 and fading.log2_now(scores[key], f[0], 1) == 0
            elif time - max(t for t, a in uses[key] if a) < 12 * half_life:
                whole = int(np.floor(np.log2(value) + 1e-9))
                assert fading.log2_now(scores[key], f[0], 1) == pytest.approx(whole + value / 2.0**whole - 1, abs=1e-5)
        for a in range(6):
            for b in range(6):
                if worth[a] > worth[b] * (1 + 1e-6):
                    assert scores[a] > scores[b]


def test_a_fading_score_holds_forty_bits_rounded_down() -> None:
    f = np.zeros((1, 1, 8))
    fading.start_clock(f, 0, 4)
    assert f[0, 0, :4].tolist() == [1.0, 2.0**0.25, 4, 0]
    one = 64 << 40
    assert fading.grown(0, f[0], 0, 1.0) == one and fading.grown(one, f[0], 0, 1.0) == 65 << 40
    assert fading.grown(65 << 40, f[0], 0, 2.0) == 66 << 40
    assert fading.grown(0, f[0], 0, 0.0) == 0 and fading.grown(one, f[0], 0, 0.0) == one
    assert fading.log2_now(one + 1, f[0], 0) == 2.0**-40
    assert fading.grown(0, f[0], 0, 0.75) == (63 << 40) + (1 << 39)
    assert fading.grown(one + 5, f[0], 0, 2.0**-40) == one + 6
    assert fading.grown(one + 5, f[0], 0, 2.0**-41) == one + 5
    assert (
        fading.grown((65 << 40) + 3, f[0], 0, 1.0) == (65 << 40) + (1 << 39) + 3
    )  # of a larger one, half a bit is lost
    assert fading.grown(0, f[0], 0, 2.0 - 2.0**-40) == (65 << 40) - 1
    f[0, 0, fading.EPOCH] = 100.0
    assert fading.grown(one, f[0], 0, 1.0) == 164 << 40  # so long ago that nothing is left
    f[0, 0, fading.EPOCH] = 3.0
    assert fading.grown((64 << 40) + 15, f[0], 0, 1.0) == (67 << 40) + (1 << 37) + 1
    assert Fraction(2) ** 3 * (1 + Fraction(1, 8)) == 9  # that is 1 + 8 at the weight of now


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_pool_of_several_layers_ticks_once_a_pass(layers: int) -> None:
    m: Any = make_state(1, 4, [4])[0][0]
    f = np.zeros((1, 1, 8))
    fading.start_clock(f, 0, 5)
    for event in range(1, 40):
        m[REG, EVENT] = event
        fading.tick_pass(m, f[0], 0, layers)
        now = 2.0 ** f[0, 0, fading.EPOCH] * f[0, 0, fading.NOW]
        assert now == pytest.approx(2.0 ** (((event - 1) // layers + 1) / 5), rel=1e-12)


def test_buckets_are_by_powers_of_two() -> None:
    assert [fading.bits(n) for n in (1, 2, 3, 4, 7, 8, 1000)] == [0, 1, 1, 2, 2, 3, 9]
    assert [fading.age_bucket(n) for n in (0, 1, 2, 3, 4, 63, 64, 127, 128, 9999)] == [0, 0, 1, 1, 2, 5, 6, 6, 6, 6]
    shares = [fading.use_bucket(x, 3.0) for x in (0.0, 1.9, 2.0, 2.9, 3.0, 3.9, 4.0, 9.0)]
    assert shares == [0, 0, 1, 1, 2, 2, 3, 3]
    assert fading.even_share(8, 64, 64) == pytest.approx(np.log2(8 / np.log(2)))
    assert fading.even_share(1, 64, 2) == 0.0
