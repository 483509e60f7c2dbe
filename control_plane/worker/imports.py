"""The job that imports a model: the importer's lines become progress, its result the model. Knows no broker."""

import msgspec

from control_plane.catalog.importer import ImportFailed, run_import
from control_plane.catalog.service import import_done
from control_plane.jobs import service
from control_plane.settings import Settings
from control_plane.worker.runner import Handler, JobFailed, RunningJob, summary
from data_plane.wire.jobs import Progress


def import_handler(settings: Settings) -> Handler:
    """The handler of `import_model` jobs."""

    async def handle(job: RunningJob) -> None:
        async def show(progress: Progress) -> None:
            await job.progress(progress.stage, progress.done, progress.total)

        scratch = settings.scratch_dir / str(job.id)
        try:
            result = await run_import(
                settings.import_command, str(job.payload["source"]), settings.artifacts_dir, scratch, show
            )
        except ImportFailed as error:
            raise JobFailed(str(error), fatal=error.fatal) from error
        async with job.transaction() as (session, row):
            await import_done(session, row.subject, result)
            await service.finish(session, row, summary(msgspec.structs.asdict(result)))

    return handle
