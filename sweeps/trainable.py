"""What runs in a Ray worker: one planned trial, an epoch a step, its rows written by the worker itself."""

import tempfile
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from ray import tune

from kdtrain.checkpoint import write_file
from kdtrain.config import Where
from kdtrain.device import device_name, device_of
from kdtrain.loop import Training
from kdtrain.probe import Probing
from kdtrain.record import DivergedError, TrialResult
from sweeps import rows
from sweeps.ended import clean, end
from sweeps.job import Job
from sweeps.replay import Replay
from sweeps.schema import Status
from sweeps.store import TEACHERS, Store, StoreError


class TrialTrainable(tune.Trainable):
    """A Tune trainable that may be given one trial after another (reuse_actors).

    Tune is told the accuracy of each epoch and when the trial is done; it keeps nothing. Every error
    of the training becomes a row. If the results cannot be written, `store_error` tells the driver.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial; it is built in the first step, so that an error there becomes a row, too."""
        self.idle: float | None = config.get("idle")  # seconds
        if self.idle is not None:
            return
        self.job = Job.model_validate_json(config["job"])
        self.training: Training | Replay | None = None
        self.started_at = datetime.now(UTC)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch; of an idling trial, its wait."""
        if self.idle is not None:
            time.sleep(self.idle)
            return {"done": True}
        try:
            return self._step()
        except StoreError as error:
            return {"done": True, "store_error": str(error)}

    def _step(self) -> dict[str, Any]:
        job, store = self.job, self.job.store
        try:
            if self.training is None:
                if (ended := self._completed()) is not None:  # its worker died after the last line
                    return ended
                if job.trial.probe is not None:
                    return self._probe()
                self.training = self._opened()
            training = self.training
            if not training.done:
                training.run_epoch()
                store.write_epochs(job.id, [rows.epoch(job.id, record) for record in training.records])
            if not training.done:
                if isinstance(training, Training):
                    store.write_bytes(training.pack(), "checkpoints", f"{job.id}.pt")
                return {"done": False, **self._progress()}
            result = training.result()
            if job.keeps_weights and isinstance(training, Training):
                store.write_bytes(training.weights(), "models", f"{job.id}.safetensors")
        except StoreError:
            raise
        except DivergedError as error:
            return self._end(Status.DIVERGED, error=error)
        except Exception as error:
            return self._end(Status.FAILED, error=error)
        return self._end(Status.COMPLETED, result)

    def _opened(self) -> Training | Replay:
        """The trial as its last checkpoint left it; of a sweep that replays another one, what that has stored."""
        job = self.job
        if job.replay is not None:
            return Replay(job.trial, job.results, job.replay)
        return Training(job.trial, self._where(), job.store.read_bytes("checkpoints", f"{job.id}.pt"))

    def _probe(self) -> dict[str, Any]:
        """The whole of a linear probe: it takes less time than an epoch of training."""
        job = self.job
        assert job.trial.probe is not None
        probed = Probing(job.trial, job.where, _local_weights(job.results, job.source["sweep"], job.trial.probe.source))
        records, result, lr = probed.run()
        job.store.write_epochs(job.id, [rows.epoch(job.id, record) for record in records])
        return self._end(Status.COMPLETED, result, epochs_done=len(records), chosen={"lr": lr})

    def _end(
        self,
        status: Status,
        result: TrialResult | None = None,
        error: Exception | None = None,
        epochs_done: int = 0,
        chosen: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Write the trial's row, drop its checkpoint and tell Tune that it is done. `chosen`: columns found out."""
        told = None if error is None else (type(error).__name__, "".join(traceback.format_exception(error)))
        end(
            self.job,
            status,
            epochs_done=len(self.training.records) if self.training else epochs_done,
            device=device_name(device_of(self.job.where)),
            started_at=self.started_at,
            result=result,
            error=told,
            columns=chosen,
            replayed=self.training.source if isinstance(self.training, Replay) else None,
        )
        ended = {"done": True, "status": status.value, **self._progress()}
        self.training = None  # free its memory before the next trial is built
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for other workers on a shared GPU
        return ended

    def _completed(self) -> dict[str, Any] | None:
        """What Tune is told if all that the trial leaves is stored: its row and, if others need them, its weights."""
        job, store = self.job, self.job.store
        if not store.exists("trials", f"{job.id}.parquet"):  # one look: readers list the whole folder
            return None
        if job.keeps_weights and not store.exists("models", f"{job.id}.safetensors"):
            return None
        for row in store.read_trials([job.id], ["phase", "status", "epochs_done", "val_acc"]).to_pylist():
            # A grid may have run what is now a point of a search.
            if row["status"] == Status.COMPLETED and row["phase"] == job.searched.get("phase"):
                clean(job)
                return {"done": True, "status": row["status"], "epoch": row["epochs_done"], "acc": row["val_acc"]}
        return None

    def _progress(self) -> dict[str, Any]:
        """What the driver is told of a trial under way.

        Epochs done and to do, of all stages; those of the recipe, `trained`; the last accuracy, None in a stage before.
        """
        epochs = self.training.total_epochs if self.training else self.job.trial.train.epochs
        records = self.training.records if self.training else []
        if not records:
            return {"epoch": 0, "epochs": epochs}
        last = records[-1]
        return {
            "epoch": len(records),
            "epochs": epochs,
            "trained": sum(record.stage == "train" for record in records),
            "seconds": sum(record.seconds for record in records),
            "device": device_name(device_of(self.job.where)),
            "replayed": self.training.source if isinstance(self.training, Replay) else None,
            "acc": last.val_acc if last.val_acc is not None else last.test_acc,
            "warning": self.training.teachers.problem if isinstance(self.training, Training) else None,
        }

    def _where(self) -> Where:
        """The job's `where` with the weights of its teachers as local files."""
        teacher, assistants, results = self.job.trial.teacher, self.job.trial.assistants or (), self.job.results
        files = {
            "teacher_weights": teacher and _local_weights(results, TEACHERS, teacher.id),
            "assistant_weights": tuple(_local_weights(results, TEACHERS, ref.id) for ref in assistants),
        }
        return self.job.where.model_copy(update=files)


@lru_cache(maxsize=64)
def _local_weights(results: str, sweep: str, key: str) -> str:
    """A local path of stored weights, the sweep's or a teacher's: the file itself, or a copy where results are remote.

    Not of a network that is still to be trained: the answer is remembered.
    """
    name = f"{key}.safetensors"
    store = Store(results, sweep)
    if not store.exists("models", name):
        store = Store(results, TEACHERS)
    if store.is_local:
        return store.path("models", name)
    data = store.read_bytes("models", name)
    if data is None:
        raise FileNotFoundError(f"the weights {store.path('models', name)} are gone.")
    path = Path(tempfile.gettempdir()) / "kdsweep" / "models" / name
    write_file(data, path)
    return str(path)
