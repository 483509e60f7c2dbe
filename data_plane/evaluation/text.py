"""The fixed texts of the quality gate and of calibration, as token ids. PROMPTS.md has their sources and licences."""

import json
from importlib.resources import files

from tokenizers import Tokenizer

PROMPT_TOKENS = 96


def prompt_tokens(tokenizer: Tokenizer, *, vocab_size: int) -> list[list[int]]:
    """The gate's 32 prompts, each cut to PROMPT_TOKENS; one of fewer than two tokens says nothing and is left out."""
    return _tokens("prompts.jsonl", tokenizer, vocab_size)


def calibration_tokens(tokenizer: Tokenizer, *, vocab_size: int) -> list[list[int]]:
    """12 other prompts of the same kinds, cut likewise: what is fitted to them is judged by the 32."""
    return _tokens("calibration.jsonl", tokenizer, vocab_size)


def _tokens(file: str, tokenizer: Tokenizer, vocab_size: int) -> list[list[int]]:
    lines = files("data_plane.evaluation").joinpath(file).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    prompts = [encoding.ids[:PROMPT_TOKENS] for encoding in tokenizer.encode_batch(texts)]
    return [ids for ids in prompts if len(ids) > 1 and max(ids) < vocab_size]
