"""Goes on with an answer that another replica began: what was sent is heard once more, in silence.

The engine counts the tokens so far as made by itself, so penalties, limits and the places that seeds count from are
what they were. Knows nothing of the network.
"""

from collections.abc import Sequence
from dataclasses import replace

from data_plane.engine.outputs import Output
from data_plane.runner.generation import Branch
from data_plane.runner.transcript import Transcript
from data_plane.wire.errors import invalid
from data_plane.wire.resume import Said


def take_up(branches: Sequence[Branch], said: Sequence[Said], *, with_logprobs: bool) -> None:
    """Brings `branches`, which are new, to where `said` has them. ApiError 400 where the two do not go together."""
    for one in said:
        if not 0 <= one.index < len(branches):
            raise invalid(f"There is no choice {one.index} to resume: the request has {len(branches)}.", "said")
        _take_up(branches[one.index], one, with_logprobs)


def _take_up(branch: Branch, said: Said, with_logprobs: bool) -> None:
    branch.is_open = said.is_open
    if said.is_open:
        # an echoed prompt has gone out with its log-probabilities
        branch.params = replace(branch.params, prompt_logprobs=None)
    if not said.tokens and said.reason is None and not said.is_ended:
        return
    transcript = branch.transcript.fresh()
    _hear(transcript, said.tokens, said.reason)
    known = len(said.tokens) - transcript.num_waiting
    if transcript.finish_reason is None and with_logprobs and known < len(said.tokens):
        # tokens whose text is held back are not shown yet, and only the engine knows their log-probabilities
        shorter = branch.transcript.fresh()
        _hear(shorter, said.tokens[:known], None)
        shorter.show_from(transcript)
        transcript, tokens = shorter, said.tokens[:known]
    else:
        transcript.show_from(transcript)
        tokens = said.tokens
    if said.is_ended:
        transcript.take()
        if transcript.finish_reason is None:
            raise invalid(f"Choice {said.index} is said to have ended and its tokens do not end it.", "said")
    branch.transcript, branch.made = transcript, tokens


def _hear(transcript: Transcript, tokens: Sequence[int], reason: str | None) -> None:
    last = len(tokens) - 1
    for at, token in enumerate(tokens):
        ended = reason if at == last else None
        transcript.feed(Output("", token, "stop" if ended == "stop" else "length" if ended == "length" else None))
    if not tokens and reason is not None:
        transcript.feed(Output("", None, "length"))
    transcript.take_news()
