"""What this process holds in memory, from Linux's /proc (zeros where there is none)."""

import resource
import sys
import threading
from pathlib import Path


def peak_rss_bytes() -> int:
    """Largest resident set so far, file-backed pages included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_anon_bytes() -> int:
    """Private memory resident now: what is not backed by a file and cannot be dropped by the kernel."""
    try:
        resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * resource.getpagesize()


class PeakMemory:
    """The largest `rss_anon_bytes` while it is open (`nbytes`), looked at every `every_s` seconds by a thread of its own; with
    `restart` also that of each part of this time."""

    def __init__(self, every_s: float = 0.005) -> None:
        self.every_s = every_s
        self.nbytes = 0
        self._part = 0
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rgpu-memory", daemon=True)

    def look(self) -> int:
        """Look once; -> the peak so far."""
        with self._lock:
            now = rss_anon_bytes()
            self.nbytes, self._part = max(self.nbytes, now), max(self._part, now)
            return self.nbytes

    def restart(self) -> int:
        """Ends a part; -> its peak."""
        self.look()
        with self._lock:
            part, self._part = self._part, 0
        return part

    def _run(self) -> None:
        while not self._done.wait(self.every_s):
            self.look()

    def __enter__(self) -> "PeakMemory":
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        self.look()
