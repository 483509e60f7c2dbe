"""The jobs that run the importer, for a new model and for another artifact of one that is there: its lines become
progress, its result the model or the artifact. Knows no broker."""

from collections.abc import Awaitable, Callable
from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog.artifacts import Unusable, made
from control_plane.catalog.importer import ImportFailed, run_import
from control_plane.catalog.quantization import PLAIN
from control_plane.catalog.service import import_done
from control_plane.jobs import service
from control_plane.settings import Settings
from control_plane.worker.runner import Handler, JobFailed, RunningJob, summary
from data_plane.wire.jobs import ImportResult, Progress


def import_handler(settings: Settings) -> Handler:
    """The handler of `import_model` jobs."""
    return _handler(settings, import_done)


def quantize_handler(settings: Settings) -> Handler:
    """The handler of `quantize_model` jobs."""
    return _handler(settings, made)


def _handler(settings: Settings, keep: Callable[[AsyncSession, UUID, ImportResult], Awaitable[None]]) -> Handler:
    async def handle(job: RunningJob) -> None:
        async def show(progress: Progress) -> None:
            await job.progress(progress.stage, progress.done, progress.total)

        try:
            result = await run_import(
                settings.import_command,
                str(job.payload["source"]),
                settings.artifacts_dir,
                settings.scratch_dir / str(job.id),
                show,
                # a job that an earlier version ordered names neither
                quantization=str(job.payload.get("quantization", PLAIN)),
                force=bool(job.payload.get("force", False)),
            )
            async with job.transaction() as (session, row):
                await keep(session, row.subject, result)
                await service.finish(session, row, summary(msgspec.structs.asdict(result)))
        except ImportFailed as error:
            raise JobFailed(str(error), fatal=error.fatal) from error
        except Unusable as error:
            raise JobFailed(str(error), fatal=True) from error

    return handle
