"""What the kernel kept a thread waiting for a processor that others held: time of a pass that is none of the engine's."""

import threading
from pathlib import Path
from typing import Any

TASKS = Path("/proc/self/task")


def waited_seconds() -> float:
    """Seconds that the calling thread has been ready to run and did not, since it started; 0 where nobody counts them."""
    try:
        fields = (TASKS / str(threading.get_native_id()) / "schedstat").read_text().split()
        return 1e-9 * int(fields[1])
    except (OSError, ValueError, IndexError):
        return 0.0


class PassWaits:
    """Hooks into a model: `seconds` has what each of its passes waited. The reading itself is outside of a pass's time."""

    def __init__(self, model: Any) -> None:
        self.seconds: list[float] = []
        self._before_s = 0.0
        self._hooks = [
            model.register_forward_pre_hook(self._begin, prepend=True),
            model.register_forward_hook(self._end),
        ]

    def _begin(self, *_: Any) -> None:
        self._before_s = waited_seconds()

    def _end(self, *_: Any) -> None:
        self.seconds.append(waited_seconds() - self._before_s)

    def remove(self) -> None:
        """The model is as before."""
        for hook in self._hooks:
            hook.remove()
