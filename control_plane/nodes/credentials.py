"""What a joined node shows instead of a key: a few facts and their HMAC. Pure; knows nothing of rows, time is given.

`ebbn_` + base64url(JSON of the claims) + `.` + base64url(HMAC-SHA256 over that text). Only control planes verify it,
all with the same secret, so nothing asymmetric is needed.
"""

import base64
import hashlib
import hmac

import msgspec

PREFIX = "ebbn_"
AUDIENCE = "ebb/control"
GOOD_FOR_S = 900.0
"""The agent asks for another when a third of it has passed."""
RENEWABLE_S = 7 * 86_400.0
"""So long after its end it may still be exchanged for a new one, and used for nothing else: a control plane that was
away for a week-end finds its nodes again."""
MOST_CHARACTERS = 2048


class Claims(msgspec.Struct, frozen=True):
    """Who may do what until when: node `node` of `tenant`, as the agent of `epoch`; `expires_at` in Unix seconds."""

    node: str
    tenant: str
    epoch: int
    expires_at: float
    audience: str = AUDIENCE


def sign(claims: Claims, secret: str) -> str:
    """The credential."""
    text = PREFIX + _encode(msgspec.json.encode(claims))
    return f"{text}.{_mac(text, secret)}"


def verify(presented: str, secret: str) -> Claims | None:
    """The claims of a credential that was signed with `secret`, whether or not it has expired; None for any other."""
    text, dot, mac = presented.partition(".")
    same = hmac.compare_digest(mac.encode(), _mac(text, secret).encode())
    if not same or not dot or not text.startswith(PREFIX) or len(presented) > MOST_CHARACTERS:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(text.removeprefix(PREFIX) + "=="), type=Claims)
    except (ValueError, msgspec.DecodeError):
        return None  # we signed it, so it is of another version of ours
    return claims if claims.audience == AUDIENCE else None


def _mac(text: str, secret: str) -> str:
    return _encode(hmac.new(bytes.fromhex(secret), text.encode(), hashlib.sha256).digest())


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
