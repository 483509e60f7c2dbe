"""GGUF's tokenizer metadata made into a tokenizer.json. Knows nothing of tensors.

Two models: `gpt2` is byte-level BPE, whose way of cutting text into words GGUF only names (`tokenizer.ggml.pre`);
`llama` is SentencePiece's BPE, of which GGUF keeps scores instead of merges.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data_plane.weights.errors import GgufError
from data_plane.weights.gguf import Value
from data_plane.weights.source_model import TokenizerFiles
from data_plane.weights.tokenizer_files import guarded, tokenizer_config

MAX_TOKENS = 1 << 20
MAX_MERGES = 1 << 22
MAX_PIECE_CHARS = 512
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _WORDS % "{1,3}"
_QWEN2_WORDS = _WORDS % ""
_TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut into words. `words` None: GPT-2's own expression."""

    words: str | None = None
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    """A word that is a token as a whole is that token, whatever the merges say."""
    adds_bos: bool = False


_GPT2 = PreTokenizer()
_DIGITS = PreTokenizer(single_digits=True)
_LLAMA3 = PreTokenizer(words=_LLAMA3_WORDS, ignore_merges=True, adds_bos=True)
_QWEN2 = PreTokenizer(words=_QWEN2_WORDS, nfc=True)
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "olmo", "mpt", "phi-2"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("falcon3",), PreTokenizer(words=_LLAMA3_WORDS, ignore_merges=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer(words=_LLAMA3_WORDS)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    "tekken": PreTokenizer(words=_TEKKEN_WORDS, ignore_merges=True, adds_bos=True),
}
_ENDS_OF_TURN = {
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<end_of_turn>", "<|end_of_text|>"
}  # fmt: skip
"""Control tokens after which a model has nothing more to say; GGUF names but one of them as its end."""


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    files: TokenizerFiles
    size: int
    bos_token_id: int | None
    eos_token_ids: list[int]
    chat_template: str | None


def read_tokenizer(metadata: dict[str, Value]) -> GgufTokenizer:
    """Raises GgufError if the metadata are damaged or name a tokenizer that is not known."""
    vocabulary = _Vocabulary(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer, adds_bos = guarded(lambda: _byte_level(vocabulary), GgufError, "the GGUF's byte-level tokenizer")
    elif kind == "llama":
        tokenizer, adds_bos = guarded(lambda: _sentence_piece(vocabulary), GgufError, "the GGUF's SPM tokenizer")
    else:
        raise GgufError(f"the tokenizer model is {str(kind)[:50]!r}; gpt2 (byte-level BPE) and llama (SPM) are known")
    tokenizer.add_special_tokens(vocabulary.added(_CONTROL))
    tokenizer.add_tokens(vocabulary.added(_USER_DEFINED))
    bos, eos = vocabulary.token_id("bos"), vocabulary.eos_token_ids()
    if bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos)) and bos is not None:
        name = vocabulary.tokens[bos]
        guarded(lambda: _prepend_bos(tokenizer, name, bos), GgufError, "the GGUF's beginning-of-sequence token")
    template = metadata.get("tokenizer.chat_template")
    chat_template = template if isinstance(template, str) else None
    config = tokenizer_config(
        tokenizer,
        bos_token_id=bos,
        eos_token_ids=eos,
        pad_token=vocabulary.token("padding"),
        unk_token=vocabulary.token("unknown"),
        chat_template=chat_template,
    )
    files = TokenizerFiles(tokenizer.to_str().encode(), config)
    return GgufTokenizer(files, len(vocabulary.tokens), bos, eos, chat_template)


class _Vocabulary:
    """The tokens with their kinds; an id is a token's place."""

    def __init__(self, metadata: dict[str, Value]) -> None:
        self.metadata = metadata
        self.tokens = _strings(metadata, "tokenizer.ggml.tokens", MAX_TOKENS)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            again = next(token for i, token in enumerate(self.tokens) if self.ids[token] != i)
            raise GgufError(f"the vocabulary has the token {again[:50]!r} twice, so ids would be ambiguous")
        kinds = metadata.get("tokenizer.ggml.token_type")
        self.kinds = [_NORMAL] * len(self.tokens) if kinds is None else _numbers(kinds, "token_type", len(self.tokens))

    def added(self, kind: int) -> list[AddedToken | str]:
        """Tokens that are found in text before anything else; control ones are left out when text is shown."""
        tokens = (token for token, its_kind in zip(self.tokens, self.kinds, strict=True) if its_kind == kind and token)
        return [AddedToken(token, special=kind == _CONTROL, normalized=False) for token in tokens]

    def token_id(self, role: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{role}_token_id")
        if value is None or value in (0xFFFFFFFF, -1):
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise GgufError(f"the {role} token is said to be {str(value)[:50]} of {len(self.tokens)}: file damaged")
        return value

    def token(self, role: str) -> str | None:
        number = self.token_id(role)
        return None if number is None else self.tokens[number]

    def eos_token_ids(self) -> list[int]:
        named = [self.token_id(role) for role in ("eos", "eot", "eom")]
        known = [self.ids[t] for t in sorted(_ENDS_OF_TURN & set(self.ids)) if self.kinds[self.ids[t]] == _CONTROL]
        return list(dict.fromkeys(i for i in [*named, *known] if i is not None))


def _strings(metadata: dict[str, Value], key: str, most: int) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not 0 < len(value) <= most:
        found = f"{len(value)} items" if isinstance(value, list) else type(value).__name__
        raise GgufError(f"{key} must be a list of 1 to {most} strings, not {found}; get a file with its tokenizer")
    return value


def _numbers(value: Value, what: str, count: int) -> list[Any]:
    if not isinstance(value, np.ndarray) or len(value) != count:
        raise GgufError(f"tokenizer.ggml.{what} must be {count} numbers, one for each token; the file is damaged")
    return cast("list[Any]", value.tolist())


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    name = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    pre = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
    if pre is None:
        raise GgufError(f"the pre-tokenizer {str(name)[:50]!r} is not known; known: {', '.join(PRE_TOKENIZERS)}")
    merges: list[tuple[str, str]] = []
    for line in _strings(vocabulary.metadata, "tokenizer.ggml.merges", MAX_MERGES):
        left, _, right = line.partition(" ")
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    steps: list[Any] = []
    if pre.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.words is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.words), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.words is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer, pre.adds_bos


def _sentence_piece(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    scores = _numbers(vocabulary.metadata.get("tokenizer.ggml.scores", 0), "scores", len(vocabulary.tokens))
    unknown = vocabulary.token("unknown") or ("<unk>" if "<unk>" in vocabulary.ids else None)
    merges = _merges_from_scores(vocabulary, scores)
    model = models.BPE(vocabulary.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    space_first = bool(vocabulary.metadata.get("tokenizer.ggml.add_space_prefix", True))
    changes: list[Any] = [normalizers.Prepend("▁")] if space_first else []
    changes.append(normalizers.Replace(" ", "▁"))
    tokenizer.normalizer = normalizers.Sequence(changes)  # pyright: ignore[reportAttributeAccessIssue]
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_first:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer, True


def _merges_from_scores(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union scores best, so each way to make a piece is a merge of that
    score's rank; among the ways, and among equals, the earlier token goes first."""
    ids = vocabulary.ids
    ranked: list[tuple[float, int, int, int, str, str]] = []
    for i, piece in enumerate(vocabulary.tokens):
        if vocabulary.kinds[i] not in (_NORMAL, _USER_DEFINED):
            continue
        if len(piece) > MAX_PIECE_CHARS:
            raise GgufError(f"token {i} has {len(piece)} characters; at most {MAX_PIECE_CHARS} are allowed in SPM")
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[i], i, ids[left], ids[right], left, right))
    ranked.sort()
    if len(ranked) > MAX_MERGES:
        raise GgufError(f"the vocabulary implies {len(ranked)} merges; at most {MAX_MERGES} are allowed")
    return [(left, right) for _, _, _, _, left, right in ranked]


def _prepend_bos(tokenizer: Tokenizer, name: str, number: int) -> None:
    template = processors.TemplateProcessing(
        single=[name, "$A"], pair=[name, "$A", "$B:1"], special_tokens=[(name, number)]
    )
    tokenizer.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
