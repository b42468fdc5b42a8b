"""Errors of rgpu: one base and few leaves. A user's mistake is an `InputError`; the command line exits 2 with its line."""


class RgpuError(Exception):
    """Base of every error rgpu raises on purpose."""


class InputError(RgpuError):
    """Bad input: the message is one line that says what was got, what was expected and what to do."""


class TraceError(InputError):
    """A trace that cannot be read or used; the message names the file and the array."""


class ConsistencyError(RgpuError):
    """Two paths that must agree (live and replay, pooled and resident) did not: a defect, never a user's mistake."""
