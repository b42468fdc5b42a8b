"""What a transfer engine raises once it cannot go on."""

from rgpu.errors import InputError, RgpuError


class TransferError(RgpuError):
    """A copy failed; the cause is chained."""


def check_alive(error: BaseException | None, closed: bool) -> None:
    """Raises for an engine that failed with `error` (an `InputError` as such, anything else as `TransferError`), or that is
    closed."""
    if isinstance(error, InputError):
        raise InputError(str(error)) from error
    if error is not None:
        raise TransferError(f"copy failed: {str(error) or type(error).__name__}") from error
    if closed:
        raise TransferError("transfer engine is closed")
