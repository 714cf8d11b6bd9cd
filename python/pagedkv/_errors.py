"""Exceptions, one class for each status of the C library."""

from __future__ import annotations


class Error(Exception):
    """What the C library refused.

    Attributes:
        status: the library's status, as in ``PKV_E_RANGE`` without the prefix.
        rule: which rule was broken (``PKV_RULE_*`` without the prefix), or ``""``.
        index: the slice, request, token or head (of a scale) at fault, or -1.
        layer: the layer at fault in a call of many layers, or -1.
        value, limit: the value found and the bound that it broke, where there are any.
    """

    status = "ERROR"

    def __init__(
        self, message: str, rule: str = "", index: int = -1, layer: int = -1,
        value: int = 0, limit: int = 0,
    ) -> None:
        super().__init__(message)
        self.rule = rule
        self.index = index
        self.layer = layer
        self.value = value
        self.limit = limit


class InvalidError(Error, ValueError):
    """An argument that can never be right: its dtype, shape, strides, or memory that overlaps."""

    status = "INVALID"


class RangeError(Error, ValueError):
    """A slice, count, request or token outside its bounds; ``index`` names it."""

    status = "RANGE"


class StrictError(Error, ValueError):
    """A plan that strict mode refuses, as upstream's validator does."""

    status = "STRICT"


class UnsupportedError(Error, NotImplementedError):
    """Meaningful, but not in this build or release: a device, a kind of items."""

    status = "UNSUPPORTED"


class NoMemoryError(Error, MemoryError):
    """The system gave no memory."""

    status = "NO_MEMORY"


class NoPagesError(Error, MemoryError):
    """A pool has fewer pages left than were asked for: ``value``, of ``limit``."""

    status = "NO_PAGES"


class StateError(Error, RuntimeError):
    """A page is not in a state for the call; ``index`` names it."""

    status = "STATE"


class DeviceError(Error, RuntimeError):
    """A device or its driver failed; the message has the driver's code."""

    status = "DEVICE"


_CLASSES = {1: InvalidError, 2: RangeError, 3: StrictError, 4: UnsupportedError, 5: NoMemoryError,
            6: NoPagesError, 7: StateError, 8: DeviceError}

_RULES = (
    "", "COUNT", "NEW_KV_START", "KV_CACHE_START", "SLICE_LEN", "NEW_KV_END", "KV_CACHE_END",
    "SAME_PAGE", "NEW_KV_GAP", "KV_CACHE_OVERLAP", "COMPUTED", "SCHEDULED", "TABLE", "PAGE",
    "CAPACITY", "SLOT", "LIMIT", "SCALE",
)


def _slice_words(rule: str, value: int, limit: int, columns: tuple[int, int, int]) -> str:
    """The words of upstream's validator; programs look for them ("expeced" is theirs)."""
    cache, row, length = columns
    if rule == "NEW_KV_START":
        return f"new_kv_start={row} must be greater than or equal to 0"
    if rule == "KV_CACHE_START":
        return f"kv_cache_start={cache} must be greater than or equal to 0"
    if rule == "SLICE_LEN" and length < 0:
        return f"slice_len={length} must be greater than or equal to 0"
    if rule == "SLICE_LEN":
        return f"slice_len={length} must be less or equal to {limit}, and greater than 0"
    if rule == "NEW_KV_END":
        return (f"new_kv_start={row} + slice_len={length} must be less or equal to "
                f"new_token_num={limit}")
    if rule == "KV_CACHE_END":
        return (f"kv_cache_start={cache} + slice_len={length} must be less or equal to "
                f"kv_cache_token_num={limit}")
    if rule == "SAME_PAGE":
        return (f"Each slice must reside in the same page: kv_cache_start={cache}, "
                f"slice_len={length}")
    if rule == "NEW_KV_GAP":
        return f"new_kv_start={value} is expeced to equal to {limit}, the end of the slice before"
    if rule == "KV_CACHE_OVERLAP":
        return (f"Overlap detected in kv_cache intervals: kv_cache_start={value} lies before "
                f"{limit}, the end of another slice")
    return ""


def from_status(
    code: int, line: str, rule: int = 0, index: int = -1, layer: int = -1, value: int = 0,
    limit: int = 0, columns: tuple[int, int, int] | None = None,
) -> Error:
    """The exception for a status of the C library; called by the extension module."""
    name = _RULES[rule] if 0 <= rule < len(_RULES) else ""
    words = _slice_words(name, value, limit, columns) if columns is not None else ""
    message = f"slice {index}: {words}" if words else line
    if name == "SCALE":
        message = (f"{'v' if value else 'k'}_scale: that of head {index} is not finite or is "
                   "below 2**-126")
    if name == "COUNT":
        message = f"num_kv_update_slices={value} is not within 0..{limit}, the columns of slices"
    return _CLASSES.get(code, Error)(message, name, index, layer, value, limit)
