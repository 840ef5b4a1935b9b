"""The training loop: one trial, epoch by epoch, repeatable and resumable."""

import time
from collections.abc import Callable, Iterator, Set
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdtrain import checkpoint, data, methods, metrics
from kdtrain.batches import Batches
from kdtrain.build import nesterov, networks, trial_id
from kdtrain.config import ConfigError, Recipe, TeacherRef, TrialConfig, Where
from kdtrain.device import set_up
from kdtrain.forward import forward
from kdtrain.graphs import Graphed
from kdtrain.methods.base import Batch, Pretraining, first_rows
from kdtrain.models.outputs import Model, Outputs
from kdtrain.record import DivergedError, EpochRecord, TrialResult
from kdtrain.teachers import Teachers

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


class Training:
    """One trial under way. `state` is what `pack` of an earlier run of the same trial gave."""

    def __init__(self, trial: TrialConfig, where: Where, state: bytes | None = None) -> None:
        self.trial, self.recipe, self.id = trial, trial.train, trial_id(trial)
        self.device, self.graphs = set_up(where), where.cuda_graphs
        if self.graphs and self.device.type != "cuda":
            raise ConfigError(
                f"run.cuda_graphs must be false on a device that is no GPU, but got true on {self.device}."
            )
        self.graph: Graphed | None = None  # of the student's passes, recorded in the first step of the recipe
        images = data.load(trial.data, where, self.device)
        self.batches = Batches(images, trial)
        setting, self.method = networks(trial, self.device, self._loader(where))
        self.student, self.teacher = setting.student, setting.teacher
        for model in (self.student, self.teacher, *setting.assistants):
            if model is not None:
                model.to(memory_format=torch.channels_last)
        self.maps = methods.maps(trial.method)
        self.teachers = Teachers(trial, setting, self.method, self.batches, where)
        self.method.allocate(self.batches.train, self.batches.train_labels.to(self.device))
        self.pretraining = self.method.pretraining()
        self.total_epochs = self.recipe.epochs + (self.pretraining.epochs if self.pretraining else 0)
        self.records: list[EpochRecord] = []
        self.optimizer = self._optimizer()
        self.last: tuple[Tensor, Tensor] | None = None  # predictions on the test set after the last epoch
        unpacked = None if state is None else checkpoint.unpack_state(state, self.device)
        if unpacked is None:
            self.method.prepare(_Plain(self))
        else:
            self._restore(unpacked)

    @property
    def done(self) -> bool:
        """Whether the last epoch has been trained."""
        return len(self.records) == self.total_epochs

    @property
    def stage(self) -> Pretraining | None:
        """The stage before the recipe's epochs, if the next epoch belongs to it."""
        return self.pretraining if len(self.records) < self.total_epochs - self.recipe.epochs else None

    def run_epoch(self) -> EpochRecord:
        """Train the next epoch, and evaluate unless it is of the stage before the recipe's epochs."""
        start, stage = time.perf_counter(), self.stage
        epoch = len(self.records) + 1
        if stage is None:
            number = epoch = epoch - (self.total_epochs - self.recipe.epochs)
            lr = lr_at(self.recipe, epoch)
        else:
            number = self.recipe.epochs + epoch  # views that no other epoch has
            lr = (stage.lr or self.recipe.lr) * self.recipe.lr_gamma ** sum(epoch > m for m in stage.milestones)
        self._set_lr(lr)
        # Whatever a method draws depends on (seed, epoch) only, so a resumed run draws the same.
        torch.manual_seed(int(np.random.SeedSequence([self.trial.seed, number]).generate_state(1, np.uint64)[0]))
        try:
            terms, train_acc = self._train_epoch(epoch, number)
        finally:
            self.teachers.end()
        val_acc = test_acc = None
        if stage is None:
            val_acc = metrics.top1(*self.predictions("val")) if len(self.batches.val) else None
            if val_acc is None or epoch == self.recipe.epochs:
                self.last = self.predictions("test")
                test_acc = metrics.top1(*self.last)
        record = EpochRecord(
            stage="train" if stage is None else "pretrain", epoch=epoch, lr=lr, terms=terms, train_acc=train_acc,
            val_acc=val_acc, test_acc=test_acc, seconds=time.perf_counter() - start,
            **(self.teachers.spent() if self._looks_at_teacher(stage) else {}),
        )  # fmt: skip
        self.records.append(record)
        if stage is not None and self.stage is None:
            self.optimizer = self._optimizer()
        return record

    def result(self) -> TrialResult:
        """The metrics of the trained student on the test set, and its best epoch; DivergedError if it broke."""
        logits, labels = self.last or self.predictions("test")
        if not torch.isfinite(logits).all():  # the last step broke what no loss has seen
            raise DivergedError(f"the predictions became NaN or infinite in epoch {len(self.records)}.")
        final = metrics.evaluate(logits, labels)
        split = "val" if len(self.batches.val) else "test"
        trained = (record for record in self.records if record.stage == "train")
        accs = [record.val_acc if split == "val" else record.test_acc for record in trained]
        best = max(acc for acc in accs if acc is not None)
        return TrialResult(
            test_top1=final.top1, test_top5=final.top5, test_nll=final.nll, test_ece=final.ece,
            test_aurc=final.aurc, test_eaurc=final.eaurc, class_recall=final.class_recall,
            val_acc=self.records[-1].val_acc, best_epoch=accs.index(best) + 1, best_acc=best, best_split=split,
            n_train=len(self.batches.train), student_params=sum(p.numel() for p in self.student.parameters()),
            train_seconds=sum(record.seconds for record in self.records),
            teacher_seconds=sum(record.teacher_seconds for record in self.records),
            shared_seconds=sum(record.shared_seconds for record in self.records),
            teacher_epochs=sum(record.teacher_epochs for record in self.records),
        )  # fmt: skip

    def predictions(self, split: str) -> tuple[Tensor, Tensor]:
        """The logits [N, K] that the method predicts for the images of "val" or "test", and their labels [N]."""
        self.student.eval()
        self.method.eval()
        logits, labels = [], []
        with torch.inference_mode():
            for batch in self.batches.plain(split):
                logits.append(self.method.predict(self._student(batch.images, frozenset())))
                labels.append(batch.labels)
        return torch.cat(logits), torch.cat(labels)

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
        """The student, with what its method needs to predict, as a safetensors file.

        The file says the trial, with the mean and standard deviation that a person's own images turned out to have.
        """
        info = self.batches.images.info
        images = self.trial.data.model_copy(update={"mean": info.mean, "std": info.std})
        told = self.trial.model_copy(update={"data": images})
        return checkpoint.pack_weights(self.student.state_dict(), self.method.predictor(), self.id, told)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["trial_id"] != self.id:
            raise ConfigError(f"the checkpoint must be of the trial {self.id}, but is of {state['trial_id']}.")
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.records = [EpochRecord(**record) for record in state["records"]]
        self.optimizer = self._optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        if self.teacher is not None and "teacher" in state:
            self.teacher.load_state_dict(state["teacher"])

    def _loader(self, where: Where) -> Callable[[Model, TeacherRef], None]:
        def load(model: Model, ref: TeacherRef) -> None:
            refs = [self.trial.teacher, *(self.trial.assistants or ())]
            paths = [where.teacher_weights, *where.assistant_weights]
            path = dict(zip(refs, paths, strict=True))[ref]
            assert path is not None, "a teacher needs a file of weights"
            checkpoint.load_teacher(model, path, ref.id, ref.model)

        return load

    def _optimizer(self) -> torch.optim.SGD:
        """A new optimizer for the stage of the next epoch."""
        recipe, stage = self.recipe, self.stage
        if stage is None:
            groups = [{"params": list(self.student.parameters())}, *self.method.param_groups()]
        else:
            groups = [{"params": [parameter for module in stage.modules for parameter in module.parameters()]}]
        return torch.optim.SGD(
            [{"lr_scale": 1.0, **group} for group in groups],
            lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov(self.trial) and stage is None,
            weight_decay=recipe.weight_decay, fused=True,
        )  # fmt: skip

    def _train_epoch(self, epoch: int, number: int) -> tuple[dict[str, float], float | None]:
        self._set_modes()
        if self._looks_at_teacher(self.stage):
            self.teachers.begin(
                number, self.recipe.epochs if self.stage is None else self.recipe.epochs + self.stage.epochs
            )
        if self.stage is None:
            self.method.start_epoch(epoch)
        n, totals = 0, dict[str, Tensor]()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for step, (batch, partner) in enumerate(self.batches.epoch(epoch, number), 1):
            self._warm_up(epoch, step)
            n += len(batch.labels)
            terms, right = self._step(batch, partner)
            correct += right
            for name, term in terms.items():
                totals[name] = totals.get(name, 0) + term * len(batch.labels)
            if step % CHECK_STEPS == 0:
                self._check_finite(totals, epoch)
        self._check_finite(totals, epoch)
        acc = 100 * correct.item() / n if self.stage is None else None
        return {name: total.item() / n for name, total in totals.items()}, acc

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def _warm_up(self, epoch: int, step: int) -> None:
        """In the first epochs of the recipe, the learning rate of the next step: lr * step / steps."""
        epochs = self.recipe.warmup_epochs
        if self.stage is None and epochs is not None and epoch <= epochs:
            steps = self.batches.steps
            self._set_lr(lr_at(self.recipe, epoch) * ((epoch - 1) * steps + step) / (epochs * steps))

    def _set_modes(self) -> None:
        """Train mode for what trains, eval mode for the rest."""
        stage = self.stage
        self.student.train(stage is None)
        self.method.train(stage is None)
        for module in stage.modules if stage else ():
            module.train()
        if self.teacher is not None:
            self.teacher.train(stage is None and self.method.teacher_trains)

    def _step(self, batch: Batch, partner: Tensor | None) -> tuple[dict[str, Tensor], Tensor | int]:
        """One optimizer step; the detached terms and the number of images predicted right."""
        student, stage = None, self.stage
        teacher, assistants = self.teachers.of(batch) if self._looks_at_teacher(stage) else (None, ())
        if self.graphs and stage is None:
            student = self._replayed(batch.images)
        elif stage is None or stage.student:
            student = self._student(batch.images, self.maps)
        if stage is not None:
            terms = self.method.pretrain_loss(batch, student, teacher)
        else:
            assert student is not None
            batch = batch._replace(assistants=assistants, partner=self._of_partner(partner))
            terms = self.method.loss(batch, student, teacher)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        right: Tensor | int = 0
        if stage is None and student is not None:
            with torch.no_grad():
                upright = first_rows(student, len(batch.labels))
                right = (self.method.predict(upright).argmax(1) == batch.labels).sum()
        return {name: term.detach() for name, term in terms.items()}, right

    def _looks_at_teacher(self, stage: Pretraining | None) -> bool:
        return self.teacher is not None and (stage is not None or self.method.teacher_in_loss)

    def _of_partner(self, images: Tensor | None) -> Outputs | None:
        """The student's outputs for the partners, without gradient."""
        with torch.no_grad():
            return None if images is None else self._student(images, frozenset())

    def _replayed(self, images: Tensor) -> Outputs:
        """The student's outputs by a CUDA graph, which the first batch records."""
        if self.graph is None:
            self.graph = Graphed(self.student, images, self.maps, self.recipe.precision)
        return self.graph(images) if self.graph.fits(images) else self._student(images, self.maps)

    def _student(self, images: Tensor, maps: Set[str]) -> Outputs:
        return forward(self.student, images, maps, self.recipe.precision)

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
        for batch in self.training.batches.plain("train"):
            yield batch, self.training.teachers.live(batch)
