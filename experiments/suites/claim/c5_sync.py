"""C5: a lookup table read inside the kernel cuts host synchronisation and jitter. Needs a GPU; said so."""

from rgpu.experiments.suites.claim.context import Setting
from rgpu.experiments.suites.claim.verdicts import NOT_TESTABLE, Claim


def test(setting: Setting) -> Claim:
    return Claim(
        "C5",
        "A lookup table read inside the kernel cuts synchronisation and jitter",
        "KR 10-2026-0070380 claim 4, [0045]",
        "host against device slot lookup, p50 and p99 of a decode step, on a GPU",
        "no change in p99",
        NOT_TESTABLE,
        "jitter is a property of real launches and copies: without a GPU there is nothing to measure. The timing model "
        "charges the read-back its profile states and has no jitter, so it cannot decide this",
    )
