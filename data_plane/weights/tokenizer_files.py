"""What an artifact says of its tokenizer beside tokenizer.json. Knows nothing of the formats it came from."""

from collections.abc import Callable
from typing import Any, TypeVar

from tokenizers import Tokenizer

from data_plane.weights.errors import WeightsError

_Built = TypeVar("_Built")
MAX_CHAT_TEMPLATE_CHARS = 1 << 20


def guarded(build: Callable[[], _Built], error_type: type[WeightsError], what: str) -> _Built:
    """`build()`, with whatever the tokenizers library raises turned into `error_type`.

    Its errors are bare Exceptions, and a panic in its Rust code is a BaseException of no importable name.
    """
    try:
        return build()
    except WeightsError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise error_type(f"{what} cannot be used: {str(error)[:300]}") from None
        raise


def adds_bos(tokenizer: Tokenizer, bos_token_id: int | None) -> bool:
    """Whether encoding with special tokens puts the first token there by itself."""
    ids = tokenizer.encode("", add_special_tokens=True).ids
    return bos_token_id is not None and ids[:1] == [bos_token_id]


def tokenizer_config(
    tokenizer: Tokenizer,
    *,
    bos_token_id: int | None,
    eos_token_ids: list[int],
    pad_token: str | None,
    unk_token: str | None,
    chat_template: str | None,
) -> dict[str, Any]:
    """The artifact's tokenizer_config.json."""
    if chat_template is not None and len(chat_template) > MAX_CHAT_TEMPLATE_CHARS:
        raise WeightsError(
            f"the chat template has {len(chat_template)} characters; {MAX_CHAT_TEMPLATE_CHARS} are allowed"
        )
    if chat_template is not None and not _is_storable(chat_template):
        raise WeightsError("the chat template holds a NUL or half a character; it is damaged, get the model again")
    return {
        "bos_token": None if bos_token_id is None else tokenizer.id_to_token(bos_token_id),
        "eos_token": tokenizer.id_to_token(eos_token_ids[0]) if eos_token_ids else None,
        "pad_token": pad_token,
        "unk_token": unk_token,
        "add_bos_token": adds_bos(tokenizer, bos_token_id),
        "chat_template": chat_template,
        "eos_token_ids": eos_token_ids,
    }


def _is_storable(text: str) -> bool:
    """Neither files in UTF-8 nor databases take every text that JSON and GGUF can spell."""
    return "\x00" not in text and text.encode(errors="ignore").decode() == text
