"""The native runner with a second thread for the host's own work while a step computes. Knows nothing of that work."""

import mmap
import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from data_plane.engine.batch import Batch, Sampled
from data_plane.execution.native_runner import NativeRunner
from kernels.cpu.decoder import Decoder


class OverlappingRunner(NativeRunner):
    """`run_while` computes in its caller's thread, which lets go of the interpreter, and works in another.

    The other way round a step would begin late: a thread that is to call the decoder first needs the interpreter, which
    a caller that goes on working keeps for up to 5 ms.
    """

    def __init__(
        self, decoder: Decoder, pages: mmap.mmap | None = None, kv: npt.NDArray[np.uint8] | None = None, form: str = ""
    ) -> None:
        self._helper: threading.Thread | None = None
        super().__init__(decoder, pages, kv, form)
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()

    def run_while(self, batch: Batch, work: Callable[[], None]) -> list[Sampled]:
        """As `run`, and `work` in a thread of this runner meanwhile; what it raises is raised here."""
        if self._helper is None:
            # the queues alone, or the thread would keep the runner and with it the weights
            self._helper = threading.Thread(
                target=_serve, args=(self._work, self._done), name="engine-ahead", daemon=True
            )
            self._helper.start()
        packed = self.pack(batch)
        self._work.put(work)
        try:
            results = self.compute(batch, packed)
        finally:
            failure = self._done.get()
        if failure is not None:
            raise failure
        return results

    def __del__(self) -> None:
        if getattr(self, "_helper", None) is not None:
            self._work.put(_end)


def _end() -> None:
    raise SystemExit


def _serve(work: SimpleQueue[Callable[[], None]], done: SimpleQueue[BaseException | None]) -> None:
    while True:
        call = work.get()
        if call is _end:
            return
        failure: BaseException | None = None
        try:
            call()
        except BaseException as error:  # noqa: BLE001  `run_while` raises it
            failure = error
        # neither the work nor what it holds is to live on until the next step
        del call
        done.put(failure)
