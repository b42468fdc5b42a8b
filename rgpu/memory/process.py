"""What this process holds in memory, from Linux's /proc (zeros where there is none)."""

import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """Largest resident set so far, file-backed pages included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_anon_bytes() -> int:
    """Private memory resident now: what is not backed by a file and cannot be dropped by the kernel."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
