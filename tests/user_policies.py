"""Policies as a user might write them, right and wrong, each with what is said of it."""

from pathlib import Path

from rgpu.policies.plain import Plain

HELPERS = "from rgpu.policies.hooks import oldest\nfrom rgpu.policies.loop import *\nfrom rgpu.policies.policy import Traits\n"
LRU = (
    "TRAITS = Traits(rows=1)\n"
    "def on_access(m, f, key, hit):\n    m[OWN, key] = m[REG, CLOCK]\n"
    "def victim(m, f):\n    return oldest(m, OWN)\n"
)
WRONG = {
    "outside": ("def victim(m, f):\n    return 9999\n", "line 4: victim returned 9999, outside the pool's 2 slots"),
    "just_outside": ("def victim(m, f):\n    return m[REG, CAP]\n", "outside the pool's 2 slots"),
    "helper": (
        "import numba\n@numba.njit\ndef pick(m, row):\n    return m[row, 0]\ndef victim(m, f):\n    return pick(m, 50)\n",
        "line 9: victim raised IndexError",
    ),
    "pinned": ("def victim(m, f):\n    return 0\n", "victim returned 0, whose expert the current wave needs"),
    "no_slot": ("def victim(m, f):\n    return None\n", "victim returned None, which is no slot"),
    "raises": ("def victim(m, f):\n    return {}[1]\n", "line 5: victim raised KeyError: 1"),
    "rowless": ("def victim(m, f):\n    return oldest(m, OWN)\n", "line 5: victim raised IndexError"),
    "writes": (
        "def on_access(m, f, key, hit):\n    m[SLOT_OF, 0] = 0\ndef victim(m, f):\n    return oldest(m, FREE)\n",
        "line 4: on_access wrote to rows of m that belong to the loop",
    ),
    "wishes": (
        "def desired(m, f):\n    m[WANT, 0] = 10**6\n    return 1\n" + LRU,
        "line 4: desired returned 1, among them a key that does not exist",
    ),
}  # what is wrong from the first events on


def written(tmp_path: Path, text: str, name: str = "mine") -> Plain:
    file = tmp_path / f"{name}.py"
    file.write_text(HELPERS + text)
    return Plain(str(file))
