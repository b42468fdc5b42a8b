"""`rgpu <command> [overrides]`: finds the command and hands over; nothing heavy is imported before that."""

import difflib
import importlib
import os
import re
import sys
from pathlib import Path

from rgpu import __version__

COMMANDS = {
    "record": "run a Mixture-of-Experts model and write down its routing as a trace",
    "train": "fit a predictor of the next experts on a trace and score it on held-out sequences",
    "replay": "replay a trace under one policy and one pool",
    "sweep": "replay a trace over a grid of policies, capacities and seeds, in process",
    "plan": "what fits into memory: a model's bytes, its expert slots, and what to expect of them",
    "generate": "generate text with the experts in a small pool of slots",
    "reproduce": "the whole study on the shipped model and traces, with figures and a report",
    "plot": "draw figures from result rows",
    "compare": "a policy of your own in one Python file against every other, with verdicts: compare my_policy.py",
    "audit": "check an engine's decision log: legality, a policy's choices, regret of evictions: audit LOG",
    "bench": "measure this machine: kernels (bench kernels), memory, disk and GPU (bench link), the engine (bench engine)",
}
SUBJECTS = {
    "bench": ("kernels", "link", "engine")
}  # commands whose first word says what: `bench kernels` is `bench what=kernels`
FILES = {"compare": ("policy.file", (".py",)), "audit": ("log", (".safetensors", ".jsonl"))}  # first word: a file
HELP = ("-h", "--help", "help")


def available() -> dict[str, str]:
    """The commands whose module exists, with a line each."""
    folder = Path(__file__).parent / "experiments"
    return {name: line for name, line in COMMANDS.items() if (folder / f"{name}.py").exists()}


def usage() -> str:
    lines = "\n".join(f"  {name:<10} {line}" for name, line in available().items())
    return (
        "rgpu <command> [group=choice] [key=value] ...\n\n"
        f"commands:\n{lines}\n\n"
        "rgpu <command> --help   its groups, choices and settings\n"
        "rgpu --version\n"
    )


def _with_subject(name: str, rest: list[str]) -> list[str]:
    """`rest` with a bare first word as the setting it stands for; exits 2 for a word that the command does not know."""
    if name in FILES and rest and not rest[0].startswith("-"):
        key, endings = FILES[name]
        if rest[0].endswith(endings) and not re.match(r"[+~]?[\w./@]+=", rest[0]):
            return [f"{key}={rest[0]}", *rest[1:]]
    if name not in SUBJECTS or not rest or "=" in rest[0] or rest[0].startswith("-"):
        return rest
    if rest[0] not in SUBJECTS[name]:
        known = ", ".join(SUBJECTS[name])
        sys.stderr.write(f"rgpu {name}: got {rest[0]!r}; expected one of: {known}; then key=value settings\n")
        raise SystemExit(2)
    return [f"what={rest[0]}", *rest[1:]]


def main() -> None:
    """Entry of the console script; exits 2 on an unknown command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in HELP:
        sys.stdout.write(usage())
        return
    if arguments[0] == "--version":
        sys.stdout.write(f"rgpu {__version__}\n")
        return
    name, known = arguments[0], available()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"expected one of: {', '.join(known)}"
        sys.stderr.write(f"rgpu: no command {name!r}; {hint}\n")
        raise SystemExit(2)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own policy or predictor; last, so that it shadows nothing
    sys.argv = [f"rgpu {name}", *_with_subject(name, arguments[1:])]
    try:
        module = importlib.import_module(f"rgpu.experiments.{name}")
    except KeyboardInterrupt:
        sys.stderr.write(f"rgpu {name}: interrupted; run the same command again to continue\n")
        raise SystemExit(130) from None
    module.run.main()


if __name__ == "__main__":
    main()
