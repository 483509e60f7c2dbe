"""Which sources a model may come from, by pattern. Knows nothing of how they are fetched."""

import re

from control_plane.errors import Invalid

_PATTERNS = {
    "pypi": re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?(?:==[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63})?"),
    "hf": re.compile(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:@[A-Za-z0-9][A-Za-z0-9._/-]{0,99})?"
    ),
    "file": re.compile(r"/[^\x00-\x1f\x7f\ud800-\udfff]{1,1023}"),
}
_FORMS = "pypi:PACKAGE==VERSION, hf:ORG/NAME[@REVISION] or file:/ABSOLUTE/PATH"


def check_source(source: str) -> str:
    """`source` as it is. Raises Invalid (param `source`) for a scheme or a form that is not on the list."""
    scheme, colon, rest = source.partition(":")
    pattern = _PATTERNS.get(scheme) if colon else None
    if pattern is None:
        raise Invalid(f"The source '{_shown(source)}' has no known scheme. Use {_FORMS}.", "source")
    if pattern.fullmatch(rest) is None or ".." in rest:
        raise Invalid(f"The source '{_shown(source)}' is malformed. Use {_FORMS}, without '..'.", "source")
    return source


def _shown(source: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in source)[:100]
