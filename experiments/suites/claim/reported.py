"""Figures the Rotary GPU record reports that cannot be tested on recorded routing, each with the reason.

Sources: arXiv 2605.29135 (abstract), KR 10-2026-0070380 ([0087] to [0091], fig. 8), the technical note and README beside
it, and the Hugging Face demo page. They are listed, never compared with numbers of ours.
"""

from typing import Any

_LAPTOP = "needs an RTX 4060 Laptop GPU, the quantised checkpoint and the undisclosed settings of the run"
_H200 = "needs an H200, DeepSeek V4-Flash weights and a kernel stack the record names but does not define"

REPORTED: tuple[tuple[str, str, str, str], ...] = (
    ("L1", "21.06 tokens/s, Qwen3.6-35B-A3B class, 8 GB laptop, 2,048 tokens", "arXiv 2605.29135 abstract", _LAPTOP),
    ("L2", "about 6.3 GB of GPU memory in the same run", "arXiv 2605.29135 abstract", _LAPTOP),
    ("L3", "10 of 10 smoke prompts pass", "technical note", "the prompts and answers are not published"),
    ("L4", "at least 20 tokens/s", "technical note", _LAPTOP),
    ("L5", "22.7 tokens/s, mean of two runs", "executive summary", _LAPTOP),
    ("L6", "33 to 34 tokens/s, warm, short answers", "executive summary", _LAPTOP),
    ("L7", "40.16 tokens/s, Gemma 4 26B-A4B", "Hugging Face page", "quantisation, context and number of runs not given"),
    ("L8", "package of two files under 4 KB", "release manifest", "a property of a closed package"),
    ("H1", "2.58 tokens/s, H100 baseline", "patent fig. 8", _H200),
    ("H2", "5.88 tokens/s, H100 with a five-line patch", "patent fig. 8", _H200),
    ("H3", "4.66 tokens/s, H200 native", "patent fig. 8", _H200),
    ("H4", "5.124, 5.751, 5.584 (median) and 5.632 (best) tokens/s, H200 rotary cycles", "patent fig. 8", _H200),
    ("H5", "indirect FP4 GEMM in 1.3618 ms, largest difference 0.0", "patent [0090]", _H200),
    ("C10", "35B-A3B in about 6.3 GB at about 21 tokens/s", "arXiv 2605.29135", _LAPTOP),
    ("A1", "the three figures and the tables of the arXiv paper", "arXiv 2605.29135", "their contents were not available "
     "to us"),
)  # fmt: skip


def reported() -> list[dict[str, Any]]:
    """As JSON: id, what is reported, source, verdict and why."""
    return [
        {"id": i, "reported": what, "source": source, "verdict": "not testable here", "why": why}
        for i, what, source, why in REPORTED
    ]
