"""The names and digests that may become part of a path, a URL or a row. Knows nothing of what they name."""

import re

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
TENANT_HEADER = "x-ebb-tenant"
"""Whose request a gateway passes on; a runner believes it only beside the token of its launch."""
USAGE_HEADER = "x-ebb-usage"
"""With it a gateway asks a runner to end a stream with a comment that tells its usage."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

NAME_RULE = "1 to 63 characters: lower-case letters, digits, '.', '_' and '-', starting with a letter or digit"


def is_name(text: str) -> bool:
    """Whether `text` may name a model, an endpoint or a node. '..' is refused although its characters are allowed."""
    return NAME.fullmatch(text) is not None and ".." not in text


def is_digest(text: str) -> bool:
    """Whether `text` is `sha256:` and 64 lower-case hexadecimal digits."""
    return DIGEST.fullmatch(text) is not None
