"""The fixed text of the quality gate, as token ids. Its sources and licences stand in PROMPTS.md beside it."""

import json
from importlib.resources import files

from tokenizers import Tokenizer

PROMPT_TOKENS = 96


def prompt_tokens(tokenizer: Tokenizer, *, vocab_size: int) -> list[list[int]]:
    """The 32 prompts, each cut to at most PROMPT_TOKENS; one of fewer than two tokens says nothing and is left out."""
    lines = files("data_plane.evaluation").joinpath("prompts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    prompts = [encoding.ids[:PROMPT_TOKENS] for encoding in tokenizer.encode_batch(texts)]
    return [ids for ids in prompts if len(ids) > 1 and max(ids) < vocab_size]
