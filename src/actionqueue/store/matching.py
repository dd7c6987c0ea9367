"""What filters and look-ups mean where plain equality does not say it; shared by the stores, so that they agree."""

from __future__ import annotations

from msgspec import MsgspecError, msgpack

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.state import ErrorInfo
from actionqueue.store.port import RunFilter

SUFFIX_DIGITS_MIN = 6
SUFFIX_MATCHES_MAX = 20

_error = msgpack.Decoder(ErrorInfo)


def error_has(error: bytes, text: str) -> bool:
    """Whether an attempt's stored error has the text in its kind or message (the traceback does not count)."""
    info = _error.decode(error)
    return text in info.kind or text in info.message


def latest_error_has(body: bytes, text: str) -> bool:
    """The same for the latest attempt in the body of a stored run; False where the body cannot be read."""
    try:
        latest = msgpack.decode(body)[-1]
        return latest is not None and latest[8] is not None and error_has(latest[8], text)
    except (MsgspecError, TypeError, LookupError, ValueError):
        return False


def check_filter(wanted: RunFilter) -> None:
    """Raise ``InvalidSubmission`` for a filter that no store answers."""
    if wanted.text is not None and wanted.since is None:
        problem = "given without since, which bounds the search"
        raise InvalidSubmission(f"text: {problem}", problems={"text": problem})


def end_of_id(suffix: str) -> str:
    """The end of an id as hexadecimal digits; raises ``InvalidSubmission`` when it is none, or too short."""
    digits = suffix.replace("-", "").lower()
    if not SUFFIX_DIGITS_MIN <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        problem = f"not the end of an id; give {SUFFIX_DIGITS_MIN} to 32 hexadecimal digits"
        raise InvalidSubmission(f"{suffix!r} is {problem}", problems={"id": problem})
    return digits
