"""Unigram and bigram language models of the training tokens: the lines a neural model must beat. Legend: V vocabulary."""

import numpy as np


def counts(tokens: np.ndarray, vocab: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(unigram counts int64 [V], bigram table as sorted pair codes with counts)."""
    ids = np.asarray(tokens, np.int64)
    codes, n = np.unique(ids[:-1] * vocab + ids[1:], return_counts=True)
    return np.bincount(ids, minlength=vocab), {"codes": codes, "counts": n}


def cross_entropy(
    tokens: np.ndarray, unigram: np.ndarray, bigram: dict[str, np.ndarray], discount: float = 0.75
) -> tuple[float, float]:
    """(unigram, bigram) cross-entropy in nats per token of `tokens`.

    Unigram with add-one smoothing; bigram by interpolated Kneser-Ney (Kneser and Ney 1995) with one discount.
    """
    vocab = len(unigram)
    ids = np.asarray(tokens, np.int64)
    smooth = (unigram + 1) / (unigram.sum() + vocab)
    left, right = np.divmod(bigram["codes"], vocab)
    kinds_after = np.bincount(left, minlength=vocab)
    continuation = (np.bincount(right, minlength=vocab) + 1) / (len(right) + vocab)
    total_after = np.bincount(left, bigram["counts"], minlength=vocab)
    previous, current = ids[:-1], ids[1:]
    code = previous * vocab + current
    at = np.minimum(np.searchsorted(bigram["codes"], code), len(bigram["codes"]) - 1)
    seen = np.where(bigram["codes"][at] == code, bigram["counts"][at], 0)
    total = np.maximum(total_after[previous], 1)
    backoff = np.where(total_after[previous] > 0, discount * kinds_after[previous] / total, 1.0)
    p = np.maximum(seen - discount, 0) / total + backoff * continuation[current]
    return float(-np.log(smooth[current]).mean()), float(-np.log(p).mean())
