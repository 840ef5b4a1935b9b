"""The training loop: one trial, epoch by epoch, repeatable and resumable."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdtrain import checkpoint, data, methods, metrics, subset, views
from kdtrain.build import nesterov, networks, trial_id
from kdtrain.config import ConfigError, Recipe, TrialConfig, Where
from kdtrain.methods.base import Batch
from kdtrain.models.outputs import Model, Outputs
from kdtrain.record import DivergedError, EpochRecord, TrialResult

EVAL_BATCH = 500
CHECK_STEPS = 100  # steps between two looks at the loss for NaN and Inf; each look waits for the device


def train(trial: TrialConfig, where: Where, on_epoch: Callable[[EpochRecord], None]) -> TrialResult:
    """Run a whole trial in this process; DivergedError if a loss term becomes NaN or infinite."""
    training = Training(trial, where)
    while not training.done:
        on_epoch(training.run_epoch())
    return training.result()


def lr_at(recipe: Recipe, epoch: int) -> float:
    """The learning rate of an epoch: lr times gamma for each milestone before it."""
    return recipe.lr * recipe.lr_gamma ** sum(epoch > milestone for milestone in recipe.milestones)


def order(seed: int, epoch: int, n: int) -> Tensor:
    """The order of n images in an epoch: a permutation that is a pure function of (seed, epoch), on the CPU."""
    # Sorted raw output, which numpy guarantees for ever; the counter keeps it apart from views.py and subset.py.
    keys = np.random.Philox(key=seed, counter=[0, 0, 2, epoch]).random_raw(n)
    return torch.from_numpy(np.argsort(keys, kind="stable"))


class Training:
    """One trial under way. `state` is what `pack` of an earlier run of the same trial gave."""

    def __init__(self, trial: TrialConfig, where: Where, state: bytes | None = None) -> None:
        self.trial, self.recipe, self.id = trial, trial.train, trial_id(trial)
        self.device = _device(where)
        torch.set_num_threads(where.cpus)
        self.images = data.load(trial.data.dataset, where.data_root, where.download, self.device)
        self.padded = views.pad(self.images.train_images)
        split = subset.split(
            self.images.train_labels.cpu(), trial.data.fraction, trial.data.val_size, trial.data.subset_seed
        )
        self.train_indices, self.val_indices = split
        setting, self.method = networks(trial, self.device, self._load_teacher(where))
        channels_last = torch.channels_last
        self.student = setting.student.to(memory_format=channels_last)
        self.teacher = setting.teacher and setting.teacher.to(memory_format=channels_last)
        self.maps = "stages" in methods.needs(trial.method)
        self.optimizer = self._optimizer()
        self.records: list[EpochRecord] = []
        self.last: tuple[Tensor, Tensor] | None = None  # predictions on the test set after the last epoch
        unpacked = None if state is None else checkpoint.unpack_state(state, self.device)
        if unpacked is None:
            self.method.prepare(_Plain(self))
        else:
            self._restore(unpacked)

    @property
    def done(self) -> bool:
        """Whether the last epoch has been trained."""
        return len(self.records) == self.recipe.epochs

    def run_epoch(self) -> EpochRecord:
        """Train and evaluate the next epoch."""
        start, epoch = time.perf_counter(), len(self.records) + 1
        lr = lr_at(self.recipe, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        # Whatever a method draws depends on (seed, epoch) only, so a resumed run draws the same.
        torch.manual_seed(int(np.random.SeedSequence([self.trial.seed, epoch]).generate_state(1, np.uint64)[0]))
        terms, train_acc = self._train_epoch(epoch)
        val_acc = metrics.top1(*self.predictions("val")) if len(self.val_indices) else None
        test_acc = None
        if val_acc is None or epoch == self.recipe.epochs:
            self.last = self.predictions("test")
            test_acc = metrics.top1(*self.last)
        seconds = time.perf_counter() - start
        record = EpochRecord(
            epoch=epoch, lr=lr, terms=terms, train_acc=train_acc, val_acc=val_acc, test_acc=test_acc, seconds=seconds
        )
        self.records.append(record)
        return record

    def result(self) -> TrialResult:
        """The metrics of the trained student on the test set, and its best epoch; DivergedError if it broke."""
        logits, labels = self.last or self.predictions("test")
        if not torch.isfinite(logits).all():  # the last step broke what no loss has seen
            raise DivergedError(f"the predictions became NaN or infinite in epoch {len(self.records)}.")
        final = metrics.evaluate(logits, labels)
        split = "val" if len(self.val_indices) else "test"
        accs = [record.val_acc if split == "val" else record.test_acc for record in self.records]
        best = max(acc for acc in accs if acc is not None)
        return TrialResult(
            test_top1=final.top1, test_top5=final.top5, test_nll=final.nll, test_ece=final.ece,
            test_aurc=final.aurc, test_eaurc=final.eaurc, class_recall=final.class_recall,
            val_acc=self.records[-1].val_acc, best_epoch=accs.index(best) + 1, best_acc=best, best_split=split,
            n_train=len(self.train_indices), student_params=sum(p.numel() for p in self.student.parameters()),
            train_seconds=sum(record.seconds for record in self.records),
        )  # fmt: skip

    def predictions(self, split: str) -> tuple[Tensor, Tensor]:
        """The logits [N, K] that the method predicts for the images of "val" or "test", and their labels [N]."""
        images, labels = self.images.test_images, self.images.test_labels
        indices = torch.arange(len(labels))
        if split == "val":
            images, labels, indices = self.images.train_images, self.images.train_labels, self.val_indices
        self.student.eval()
        self.method.eval()
        with torch.inference_mode():
            logits = [
                self.method.predict(self._forward(self.student, self._plain(images, part), False))
                for part in indices.to(self.device).split(EVAL_BATCH)
            ]
        return torch.cat(logits), labels[indices.to(self.device)]

    def pack(self) -> bytes:
        """All that a later run needs to go on from here."""
        state: dict[str, Any] = {
            "trial_id": self.id,
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "records": [asdict(record) for record in self.records],
        }
        if self.teacher is not None and self.method.teacher_trains:
            state["teacher"] = self.teacher.state_dict()
        return checkpoint.pack_state(state)

    def weights(self) -> bytes:
        """The student, with what its method needs to predict, as a safetensors file."""
        return checkpoint.pack_weights(self.student.state_dict(), self.method.state_dict(), self.id)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["trial_id"] != self.id:
            raise ConfigError(f"the checkpoint must be of the trial {self.id}, but is of {state['trial_id']}.")
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.teacher is not None and "teacher" in state:
            self.teacher.load_state_dict(state["teacher"])
        self.records = [EpochRecord(**record) for record in state["records"]]

    def _load_teacher(self, where: Where) -> Callable[[Model], None]:
        def load(model: Model) -> None:
            assert self.trial.teacher is not None
            assert where.teacher_weights is not None, "a teacher needs a file of weights"
            checkpoint.load_teacher(model, where.teacher_weights, self.trial.teacher.id)

        return load

    def _optimizer(self) -> torch.optim.SGD:
        recipe = self.recipe
        groups = [{"params": list(self.student.parameters())}, *self.method.param_groups()]
        return torch.optim.SGD(
            [{"lr_scale": 1.0, **group} for group in groups],
            lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov(self.trial),
            weight_decay=recipe.weight_decay, fused=True,
        )  # fmt: skip

    def _train_epoch(self, epoch: int) -> tuple[dict[str, float], float]:
        self.method.start_epoch(epoch)
        self.student.train()
        self.method.train()
        if self.teacher is not None:
            self.teacher.train(self.method.teacher_trains)
        n = len(self.train_indices)
        shown = self.train_indices[order(self.trial.seed, epoch, n)].to(self.device)
        drawn = views.draw(self.trial.views, epoch, len(self.images.train_labels), self.device)
        totals: dict[str, Tensor] = {}
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for step, indices in enumerate(shown.split(self.recipe.batch_size), 1):
            batch = self._batch(indices, drawn, epoch)
            terms, right = self._step(batch)
            correct += right
            for name, term in terms.items():
                totals[name] = totals.get(name, 0) + term * len(indices)
            if step % CHECK_STEPS == 0:
                self._check_finite(totals, epoch)
        self._check_finite(totals, epoch)
        return {name: total.item() / n for name, total in totals.items()}, 100 * correct.item() / n

    def _step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """One optimizer step; the detached terms and the number of images predicted right."""
        teacher = self._teach(batch.images)
        student = self._forward(self.student, batch.images, self.maps)
        terms = self.method.loss(batch, student, teacher)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            right = (self.method.predict(student).argmax(1) == batch.labels).sum()
        return {name: term.detach() for name, term in terms.items()}, right

    def _teach(self, images: Tensor) -> Outputs | None:
        if self.teacher is None:
            return None
        with torch.no_grad():
            return self._forward(self.teacher, images, self.maps)

    def _forward(self, model: Model, images: Tensor, stages: bool) -> Outputs:
        """Outputs in float32, computed in the trial's precision; maps only where a method asks for them."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            outputs: Outputs = model(images)
        pooled = outputs.pooled.float()
        # The head in float32: losses compare logits, and logits rounded to bfloat16 tie.
        logits = outputs.logits if outputs.logits.dtype == torch.float32 else model.head(pooled)
        maps = tuple(stage.float() for stage in outputs.stages) if stages else ()
        return Outputs(logits, pooled, outputs.stem.float(), maps)

    def _batch(self, indices: Tensor, drawn: views.Views, epoch: int) -> Batch:
        if self.recipe.augment:
            images = views.apply(self.padded, indices, drawn, self.images.info.mean, self.images.info.std)
        else:
            images = self._plain(self.images.train_images, indices)
        return Batch(images, self.images.train_labels[indices], indices, epoch)

    def _plain(self, images: Tensor, indices: Tensor) -> Tensor:
        return views.plain(images, indices, self.images.info.mean, self.images.info.std)

    @staticmethod
    def _check_finite(totals: dict[str, Tensor], epoch: int) -> None:
        for name, total in totals.items():
            if not torch.isfinite(total):
                raise DivergedError(f"the loss term {name!r} became {total.item()} in epoch {epoch}.")


class _Plain:
    """The training images of a trial, not augmented, with the teacher's outputs; may be iterated again."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __iter__(self) -> Iterator[tuple[Batch, Outputs | None]]:
        training = self.training
        for indices in training.train_indices.to(training.device).split(EVAL_BATCH):
            images = training._plain(training.images.train_images, indices)
            batch = Batch(images, training.images.train_labels[indices], indices, 0)
            yield batch, training._teach(images)


def _device(where: Where) -> torch.device:
    if where.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(where.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device must be one of this machine, but got {where.device!r} ({reason}).") from None
    return device
