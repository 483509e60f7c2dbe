"""Where the chunks of a prompt's chain end in its tokens, and so which KV block completes which chunk.

What a template does is not known here, only what came out: each message's content is looked up in the rendered text,
and what cannot be found for sure (tools, contents that a template changed) counts as complete only where the next
content that was found begins. So a label is never on a block before the one that completes its chunk.
"""

from bisect import bisect_right
from collections.abc import Sequence

from data_plane.engine.prefix_cache import Labels
from data_plane.wire.prefix_chain import Chain, Piece

_SEARCHED = 4
"""Lengths of the text that may be searched in vain, or many contents that a template changed would take long."""


def label_ids(chain: Chain, block_size: int) -> Labels:
    """Labels of a prompt of token ids."""
    return _by_block(chain, [chain.chunk * (at + 1) for at in range(len(chain.names))], block_size)


def label_text(chain: Chain, ends: Sequence[int], block_size: int) -> Labels:
    """Labels of a prompt that is a text; `ends` as `tokens_at` wants them."""
    places = [chain.chunk * (at + 1) for at in range(len(chain.names))]
    return _by_block(chain, _counts(places, ends), block_size)


def label_chat(chain: Chain, pieces: Sequence[Piece], text: str, ends: Sequence[int], block_size: int) -> Labels:
    """Labels of a chat, whose canonical text is `pieces` and whose rendered prompt is `text`."""
    return _by_block(chain, _counts(places_of(pieces, text, chain.chunk, len(chain.names)), ends), block_size)


def _counts(places: Sequence[int], ends: Sequence[int]) -> list[int]:
    counts: list[int] = []
    at = 0
    for place in places:
        at = tokens_at(place, ends, at)
        counts.append(at)
    return counts


def tokens_at(place: int, ends: Sequence[int], least: int = 0) -> int:
    """How many tokens cover the first `place` characters, where it is known that `least` do not cover more.

    `ends` has, for each token, the place after its last character.
    """
    size = len(ends)
    low, step = max(0, least - 1), 128
    # the next chunk's end is near: fewer looks than at all tokens
    while low + step < size and ends[low + step] <= place:
        low, step = low + step, step * 2
    count = bisect_right(ends, place, low, min(size, low + step))
    if count < size and (not count or ends[count - 1] < place):
        # the next token goes beyond the place, perhaps with others that are parts of the same character
        end = ends[count]
        while count < size and ends[count] == end:
            count += 1
    return count


def places_of(pieces: Sequence[Piece], text: str, chunk: int, count: int) -> list[int]:
    """For each of the first `count` chunks of the canonical text, the place in `text` by which all of it has come."""
    starts = _starts(pieces, text)
    anchors = _anchors(pieces, starts, len(text))
    places: list[int] = []
    passed = floor = 0
    for piece, start, anchor in zip(pieces, starts, anchors, strict=True):
        if len(places) == count:
            break
        if start is None and piece.text:
            floor = max(floor, anchor)
        until = passed + len(piece.text)
        while len(places) < count and (end := chunk * (len(places) + 1)) <= until:
            place = floor if start is None else max(floor, _within(piece.text, end - passed, text, start))
            places.append(place)
        passed = until
    return places


def _within(content: str, offset: int, text: str, start: int) -> int:
    """Where the first `offset` characters of a content end, whose stripped text starts at `start`."""
    lead = len(content) - len(content.lstrip())
    if start >= lead and text.startswith(content, start - lead):
        return start - lead + offset
    return start + min(max(offset - lead, 0), len(content.strip()))


def _starts(pieces: Sequence[Piece], text: str) -> list[int | None]:
    """Where each content starts in `text`, its outer spaces left out; None where that is not sure.

    The earliest places in order are at or before the true ones, the latest at or after them; they are sure where both
    are the same.
    """
    has_head = any(piece.message is None for piece in pieces)
    # a template may put tools behind the system's text, or within it
    sought = [piece.text.strip() if piece.is_content and not (piece.is_system and has_head) else "" for piece in pieces]
    earliest = _in_order(sought, text)
    # backwards by turning all around: looking for the last place is quadratic in Python, for the first it is not
    turned = _in_order([content[::-1] for content in reversed(sought)], text[::-1])
    latest = [
        None if place is None else len(text) - place - len(content)
        for place, content in zip(reversed(turned), sought, strict=True)
    ]
    return [first if first == last else None for first, last in zip(earliest, latest, strict=True)]


def _in_order(contents: Sequence[str], text: str) -> list[int | None]:
    places: list[int | None] = []
    at, in_vain = 0, 0
    for content in contents:
        place = text.find(content, at) if content and in_vain <= _SEARCHED * len(text) else -1
        if place < 0:
            in_vain += len(text) - at if content else 0
            places.append(None)
        else:
            places.append(place)
            at = place + len(content)
    return places


def _anchors(pieces: Sequence[Piece], starts: Sequence[int | None], end: int) -> list[int]:
    """For each piece the start of the next content that was found, after all of the system's; else the text's end."""
    anchors: list[int] = []
    following = following_other = end
    for piece, start in zip(reversed(pieces), reversed(starts), strict=True):
        anchors.append(following_other if piece.message is None or piece.is_system else following)
        if start is not None:
            following = start
            if not piece.is_system:
                following_other = start
    anchors.reverse()
    return anchors


def _by_block(chain: Chain, counts: Sequence[int], block_size: int) -> Labels:
    labels: dict[int, list[int]] = {}
    least = 1
    for name, count in zip(chain.names, counts, strict=True):
        least = max(least, count)
        labels.setdefault((least - 1) // block_size, []).append(name)
    return {block: tuple(names) for block, names in labels.items()}
