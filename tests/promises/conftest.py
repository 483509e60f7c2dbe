"""The platform that the promises share: one `ebb up` for the session, the real small model, an endpoint `chat`."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.promises.running import Platform

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m platform` picks what shares the one platform, `-m "not platform"` what can run beside it."""
    for item in items:
        if HERE in item.path.parents and "bare" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.platform)


@pytest.fixture(scope="session")
def bare() -> Iterator[Platform]:
    """A started platform without any model."""
    home = Path(tempfile.mkdtemp(prefix="ebb-promises-"))
    platform = Platform.up(home)
    yield platform
    platform.down()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def stocked(bare: Platform, smollm2_gguf: Path) -> Platform:
    """The same with the model `smollm2`."""
    bare.ebb("models", "add", "smollm2", f"file:{smollm2_gguf}", "--wait")
    return bare


@pytest.fixture(scope="session")
def chat(stocked: Platform) -> Platform:
    """The same with the endpoint `chat`, which keeps its replica for the session."""
    stocked.ebb("deploy", "chat", "--model", "smollm2", "--min", "0", "--max", "1", "--idle", "600", "--wait")
    return stocked


@pytest.fixture
def fresh_home() -> Iterator[Path]:
    """A home nobody used; what still runs on it at the end is stopped."""
    home = Path(tempfile.mkdtemp(prefix="ebb-promise-"))
    yield home
    Platform(home, "", "", "", 0).run("down")
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_hf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face layout: a random Llama of two layers and a byte-level tokenizer."""
    # seconds to import, which most promises have no use for
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a tiny model says nothing of worth"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    return folder
