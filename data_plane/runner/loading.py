"""From an artifact's folder to something that serves, and from what can go wrong there to a sentence.

torch is imported here and only when called, so that a runner can tell about a failing import too.
"""

import contextvars
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import structlog

from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine, Executor
from data_plane.runner.chat_template import ChatTemplate
from data_plane.runner.engine_loop import EngineLoop
from data_plane.runner.keeping import Keeping
from data_plane.runner.metrics import Metrics
from data_plane.runner.served import ServedModel
from data_plane.runner.tokenizer import Tokenizer
from data_plane.wire.fleet import RunnerSpec, StartFailure

if TYPE_CHECKING:
    from data_plane.execution import Opened

log = structlog.get_logger()

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def load_executor(
    spec: RunnerSpec, on_phase: Callable[[str], None], ahead: "Opened | None" = None
) -> tuple[Executor, EngineConfig]:
    """The model on its device, warmed up. `on_phase` hears `imported`, then what the loader tells (`warming`).
    `ahead`: its artifact, where it was opened before."""
    from data_plane.execution import LoadOptions, load

    on_phase("imported")
    wanted = spec.spec
    options = LoadOptions(
        device=wanted.device,
        dtype=wanted.dtype,
        max_model_len=wanted.max_model_len,
        max_num_seqs=wanted.max_num_seqs,
        max_num_batched_tokens=wanted.max_num_batched_tokens,
        kv_cache_bytes=wanted.kv_cache_bytes,
        threads=wanted.threads,
    )
    loaded = load(Path(spec.artifact_dir), options, on_phase, ahead)
    return loaded.executor, loaded.config


def is_of_torch(executor: Executor) -> bool:
    """Whether torch runs the model."""
    return type(executor).__module__ == "data_plane.execution.model_runner"


def check_artifact(spec: RunnerSpec) -> None:
    """FileNotFoundError, before anything slow is imported, where the artifact is not there."""
    folder = Path(spec.artifact_dir)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"The artifact {folder.name} has no {name} on this machine. Import the model again."
            )


def open_tokenizer(spec: RunnerSpec) -> Tokenizer:
    """The artifact's tokenizer; TokenizerError where it cannot be used."""
    return Tokenizer.open(Path(spec.artifact_dir))


def serve(
    spec: RunnerSpec,
    executor: Executor,
    config: EngineConfig,
    tokenizer: Tokenizer,
    on_dead: Callable[[], None],
    template: ChatTemplate | None = None,
    keeping: Keeping | None = None,
) -> ServedModel:
    """Wires engine, tokenizer and metrics together. The engine's thread is started by the caller's event loop.
    `template`: the tokenizer's, where it is there already. `keeping`: has what the engine goes on from."""
    metrics = Metrics(spec.endpoint)
    made = Engine(config, executor, secret=None if keeping is None else keeping.secret)
    engine = EngineLoop(made, on_step=metrics.step, on_dead=on_dead)
    if keeping is not None:
        keeping.use(made)
        engine.tell_of_shelf()
    metrics.watch(lambda: engine.stats)
    return ServedModel(
        name=spec.endpoint,
        # what the KV cache cannot hold is no context either
        max_model_len=min(config.max_model_len, config.num_blocks * config.block_size),
        vocab_size=config.vocab_size or tokenizer.vocab_size,
        tokenizer=tokenizer,
        template=template or template_of(tokenizer),
        engine=engine,
        metrics=metrics,
        slots=config.max_num_seqs,
    )


def judge(error: BaseException) -> StartFailure:
    """What a failed start means: whether another try could end otherwise, and the sentence people read."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        return StartFailure(
            message=f"There is not enough memory for this model: {text[:500]} Deploy it with a smaller --context or "
            "--concurrency, or on a larger machine.",
            fatal=True,
        )
    # a file that is missing or wrong, a device or a value that is not supported: the next start finds the same
    fatal = isinstance(error, ValueError | FileNotFoundError | NotADirectoryError | ImportError | NotImplementedError)
    return StartFailure(message=text[:1000] if fatal else f"{type(error).__name__}: {text[:1000]}", fatal=fatal)


def in_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Starts `work` in a thread that does not keep the process alive: a start may be stopped in the middle."""
    # with the caller's context, so that its log lines name the replica too
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread


def template_of(tokenizer: Tokenizer) -> ChatTemplate | None:
    """The model's chat template; None where it has none, or one that does not parse."""
    config = tokenizer.config
    if not config.chat_template:
        return None
    names = {"bos_token": config.bos_token, "eos_token": config.eos_token, "pad_token": config.pad_token}
    try:
        return ChatTemplate(config.chat_template, {**names, "unk_token": config.unk_token})
    except jinja2.TemplateError as error:
        # completions still work, and chats are refused with a sentence
        log.warning("the chat template does not parse", error=str(error))
        return None
