"""What may be printed, logged or sent of text that comes from a configuration: addresses in it may hold secrets."""

import re
from typing import Any

# In a text, what punctuates a sentence after an address is no part of it.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"`<>|\\]*[^\s'\"`<>|\\.,:;!?)]", re.IGNORECASE)
_LONGEST_VALUE = 200


def plain_address(address: str) -> str:
    """An address (a URL; a path stays as it is) without user, password, query and fragment.

    One that is not well formed, such as one whose password holds a /, loses all that may be a part of them.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    kept, mark, extra = _split_extra(rest)
    return f"{scheme}://{kept[len(_credentials(kept)) :]}{f'{mark}...' if extra else mark}"


def without_secrets(text: str) -> str:
    """The text with all addresses in it made plain."""
    return _ADDRESS.sub(lambda match: plain_address(match[0]), text)


def shown(value: Any) -> str:
    """A value of a configuration, for an error: short, and of addresses only the server, for a path may be a secret,
    too: those of webhooks are."""
    if isinstance(value, str) and "://" in value:
        return repr(_server(value))
    text = _ADDRESS.sub(lambda match: _server(match[0]), repr(value))
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def secret_in(address: str) -> str | None:
    """What of an address does not belong into a configuration, in words; None where it is a plain one."""
    kept, _, extra = _split_extra(address.partition("://")[2])
    if _credentials(kept):
        return "a user or a password"
    return "a query (?...) or a fragment (#...)" if extra else None


def _split_extra(rest: str) -> tuple[str, str, str]:
    """What stands before the query or fragment, its mark, and itself."""
    parts = re.split(r"([?#])", rest, maxsplit=1)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else (rest, "", "")


def _credentials(rest: str) -> str:
    """User and password with their @, of what follows ://; empty without them."""
    authority = rest.partition("/")[0]
    port = authority.rpartition("]")[2].partition(":")[2]
    if "@" not in authority and not re.fullmatch(r"\d*", port):
        authority = rest  # no port has letters, but a password with a / in it
    user, at, _ = authority.rpartition("@")
    return user + at


def _server(address: str) -> str:
    plain = plain_address(address)
    scheme, _, rest = plain.partition("://")
    server = f"{scheme}://{rest.partition('/')[0]}"
    return server if server == address.rstrip("/") else f"{server}/..."
