"""`python -m data_plane.weights import …`: one import in a process of its own, told as JSON lines on stdout.

The lines are those of `wire.jobs.ImportLine`; the last is a failure or a result, whatever happens. The process is a
fence as well: a damaged file that slips through the checks meets limits on memory, and takes down nobody else.
"""

import argparse
import json
import os
import resource
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from data_plane.weights.building import QUANTIZATIONS, Judge
from data_plane.weights.errors import WeightsError
from data_plane.weights.importing import ImportOptions, run_import
from data_plane.weights.progress import Progress

_GIB = 1 << 30


class Stopped(BaseException):
    """SIGTERM or SIGINT: unwinds every `with`, so that scratch files go."""


def _say(kind: str, fields: dict[str, Any]) -> None:
    print(json.dumps({"type": kind, **fields}, allow_nan=False), flush=True)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    # a second signal must not interrupt the clean-up that the first began
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


def _limit_memory(source_bytes: int, factor: float) -> None:
    """Address space: what is used now, and room for mappings of the source and the artifact, each widened."""
    if factor <= 0:
        return
    limit = psutil.Process().memory_info().vms + int(source_bytes * factor) + 8 * _GIB
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


class _Parser(argparse.ArgumentParser):
    """Wrong arguments end in a failure line like everything else."""

    def error(self, message: str) -> NoReturn:
        raise WeightsError(f"{message}; see python -m data_plane.weights import --help")


def _parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m data_plane.weights")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import", help="turn a source into an artifact")
    command.add_argument("--source", required=True)
    command.add_argument("--artifacts", required=True, type=Path)
    command.add_argument("--scratch", required=True, type=Path)
    command.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    command.add_argument("--max-bytes", type=int, default=1 << 40, help="largest source taken")
    command.add_argument("--memory-factor", type=float, default=8.0, help="address space per source byte; 0: no limit")
    command.add_argument("--quantization", choices=QUANTIZATIONS, default="none", help="auto: the fastest good enough")
    command.add_argument("--force", action="store_true", help="keep weights that the quality gate refuses")
    return parser.parse_args(arguments)


def _judge() -> Judge:
    # an import of plain weights runs no model, and needs none of what runs one
    from data_plane.evaluation.judge import LocalJudge

    return LocalJudge()


def _import(options: argparse.Namespace) -> dict[str, Any]:
    progress = Progress(lambda stage, done, total: _say("progress", {"stage": stage, "done": done, "total": total}))
    what = ImportOptions(
        source=options.source,
        artifacts=options.artifacts,
        scratch=options.scratch,
        dtype=options.dtype,
        max_bytes=options.max_bytes,
        quantization=options.quantization,
        force=options.force,
    )
    # the unquantized weights, which are run beside the quantized ones, may be many times a quantized source
    factor = options.memory_factor * (1 if options.quantization == "none" else 2)
    return run_import(what, progress, lambda size: _limit_memory(size, factor), _judge)


def main(arguments: list[str]) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        _say("result", _import(_parse_arguments(arguments)))
        return 0
    except WeightsError as error:
        return _fail(str(error), fatal=error.fatal)
    except MemoryError:
        return _fail("the import needs more memory than its limit allows; raise --memory-factor", fatal=True)
    except BrokenPipeError:
        # whoever started us is gone: nobody is left to tell, and the scratch folder is gone by now
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Stopped as error:
        return _fail(f"the import was stopped by {error}; start it again", fatal=False)
    except OSError as error:
        return _fail(f"the import failed on {error.filename or 'a file'}: {error}; try again", fatal=False)
    except SystemExit:  # --help
        raise
    except BaseException as error:  # the promise of a last line holds for defects of ours too
        code = _fail(f"the import failed unexpectedly: {type(error).__name__}: {str(error)[:300]}", fatal=True)
        if isinstance(error, Exception):
            sys.excepthook(type(error), error, error.__traceback__)
            return code
        raise


def _fail(message: str, *, fatal: bool) -> int:
    # it may quote the source, and goes to terminals and a database
    plain = "".join(c if c.isprintable() else " " for c in message)
    _say("failure", {"message": plain, "fatal": fatal})
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
