"""Run logger: log.txt, summary.json or eval.json, TensorBoard and the `Final result` block."""
import json
import os
import socket
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from util.file_lock import RunLock
from util.files import set_aside, write_atomically
from util.log import logger
from util.text import first_line

STEPS_PER_EPOCH = 1000      # TensorBoard's step is epoch x 1000, so that runs of any batch size share an axis
# Lines of the Final result block, each with the key that it needs.
FINAL = (('images_per_sec', 'Final Performance images/sec : {images_per_sec:.2f}'), ('loss', 'Final Loss : {loss:.4f}'),
         ('acc1', 'Final Accuracy : {acc1:.2f}'), ('best_acc1', 'Best Accuracy : {best_acc1:.2f} (epoch {best_epoch})'),
         ('task', 'E2E {task} Duration sec : {duration_sec:.0f}'))


class RunLogger:
    """Logger of the main process; other ranks have a NullRunLogger.

    If the disk is full or fails, it logs one line and keeps the records until a later write succeeds.

    Args:
        lock: of the folder, released by `close`.
        records: initial lines of log.txt, as restored by a resumed run; None: log.txt stays as it is.
        begin: fractional epoch from which TensorBoard drops earlier events of the folder; None: none.
    """

    def __init__(self, folder: str, log_dir: Optional[str], lock: RunLock, records: Optional[Sequence[str]] = None,
                 begin: Optional[float] = None):
        self.folder, self._lock = folder, lock
        self._path = os.path.join(folder, 'log.txt')
        self.records: List[str] = list(records or ())
        self._events = None
        try:
            self._events = EventFile(log_dir or folder, None if begin is None else int(begin * STEPS_PER_EPOCH))
        except Exception as error:      # of any type from a broken tensorboard or protobuf; a folder without access
            logger.info('TensorBoard files are not written: %s', first_line(error))
        if records is not None and (records or os.path.exists(self._path)):
            self._write()

    def log_epoch(self, record: Dict[str, Any]) -> None:
        """Append a JSON object to log.txt."""
        self.records.append(json.dumps(record))
        self._write()

    def _write(self):
        # The whole file each time: a kill or a full disk leaves the old file or the new one, never half a line.
        try:
            write_atomically(self._path, ''.join(line + '\n' for line in self.records).encode())
        except OSError as error:
            logger.error('error: %s: not written (%s); training continues, checkpoints keep its lines',
                         self._path, error.strerror)

    def log_scalars(self, epoch: float, values: Dict[str, float]) -> None:
        """Write TensorBoard scalars {tag: value} at a fractional epoch."""
        try:
            for tag, value in values.items() if self._events else ():
                self._events.write(step=int(epoch * STEPS_PER_EPOCH), summary=self._events.scalar(tag, value))
        except Exception as error:      # of any type in a broken package
            logger.error('error: TensorBoard files cannot be written (%s); training continues without them',
                         first_line(error))
            self._events = None

    def write_result(self, name: str, result: Dict[str, Any]) -> None:
        """Write `name`.json (an older one is set aside) and print the Final result block."""
        path = os.path.join(self.folder, name + '.json')
        try:
            if os.path.exists(path):
                set_aside(path)
            write_atomically(path, json.dumps(result, indent=1).encode())
        except OSError as error:
            logger.error('error: %s: not written (%s)', path, error.strerror)
        logger.info('\n'.join(['------------------ Final result ------------------',
                               *(text.format(**result) for key, text in FINAL if result.get(key) is not None)]))

    def close(self) -> None:
        """Release the lock of the folder."""
        self._lock.release()


class EventFile:
    """A TensorBoard event file, written at once: SummaryWriter's thread dies with a traceback on a full disk.

    Args:
        purge_step: step from which TensorBoard drops events of earlier files in the folder; None: none.
    """

    def __init__(self, folder: str, purge_step: Optional[int]):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import scalar
        self.scalar, self._event = scalar, Event
        os.makedirs(folder, exist_ok=True)
        name = 'events.out.tfevents.{:.6f}.{}.{}'.format(time.time(), socket.gethostname(), os.getpid())
        self._file = open(os.path.join(folder, name), 'wb')         # noqa: SIM115
        self._records = RecordWriter(self._file)
        self.write(file_version='brain.Event:2')
        if purge_step is not None:
            self.write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, **fields: Any) -> None:
        """Write an Event with these fields."""
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()


class NullRunLogger:
    """A RunLogger that discards everything."""
    records = ()

    def __getattr__(self, name: str) -> Callable:
        return lambda *args: None
