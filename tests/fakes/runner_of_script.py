"""A real runner's process over a fake executor: its whole life and port are the real ones, only the model is not.

`python tests/fakes/runner_of_script.py --spec FILE`, where FILE is a RunnerSpec whose folder has `fake.json`:
    {"step_s": 0.01, "move_s": 0.3}
Greedy requests hear `SCRIPT`, others noise of their seeds. A request with `logit_bias` {"99": K} kills the process when
it comes to its token K, wherever it runs.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_plane.engine.batch import Row
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine, Executor
from data_plane.runner import loading, main
from data_plane.runner.tokenizer import Tokenizer
from data_plane.wire.fleet import RunnerSpec
from tests.fakes.served import make_tokenizer, script

POISON = 99


def run() -> int:
    """The runner's own main, with a model of ours."""
    tokenizer = make_tokenizer()
    engines: list[Engine] = []
    executor = script(tokenizer, engines)
    say = executor.choose
    assert say is not None

    def choose(row: Row, position: int) -> int:
        if POISON in row.params.logit_bias:
            made = position - engines[0].scheduler.requests[row.request_id].num_prompt
            if made >= row.params.logit_bias[POISON]:
                os.kill(os.getpid(), signal.SIGKILL)
        return say(row, position)

    def load(spec: RunnerSpec, on_phase: Callable[[str], None], ahead: object = None) -> tuple[Executor, EngineConfig]:
        hooks: dict[str, Any] = json.loads((Path(spec.artifact_dir) / "fake.json").read_text())
        executor.choose, executor.step_delay_s = choose, hooks.get("step_s", 0.0)
        main.MOVE_S = hooks.get("move_s", main.MOVE_S)
        on_phase("imported")
        config = EngineConfig(
            max_model_len=1024,
            max_num_seqs=spec.spec.max_num_seqs,
            eos_token_ids=frozenset([2]),
            vocab_size=tokenizer.vocab_size,
            num_blocks=4096,
        )
        return executor, config

    class Told(Engine):
        """An engine that the script knows: only it can say where a prompt ends."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            engines.append(self)

    def check(spec: RunnerSpec) -> None:
        """There is no artifact."""

    def open_tokenizer(spec: RunnerSpec) -> Tokenizer:
        return tokenizer

    loading.Engine = Told
    main.check_artifact = check
    main.open_tokenizer = open_tokenizer
    main.load_executor = load
    return main.main()


if __name__ == "__main__":
    sys.exit(run())
