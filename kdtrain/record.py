"""What a training run emits: one record an epoch and one result at the end. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of one trial. Accuracies are top-1 in percent; None where the split was not evaluated."""

    stage: str  # "train"; "pretrain" for the stage that some methods have before
    epoch: int  # 1-based, within the stage
    lr: float
    terms: dict[str, float]  # mean over the epoch of each loss term, weights applied
    train_acc: float | None  # of the training-mode, augmented forward passes; None in "pretrain"
    val_acc: float | None  # held-out training images; None without val_size
    test_acc: float | None  # None while there is a validation split, except at the last epoch
    seconds: float  # training and evaluation
    teacher_seconds: float = 0.0  # of these: computing a teacher's outputs for all images of the epoch at once
    shared_seconds: float = 0.0  # and waiting for, reading and writing the files in which trials share them
    teacher_epochs: int = 0  # for how many epochs they were computed: while others do the next, also for later ones


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """The end of a completed trial: metrics of the last epoch, top-1 and top-5 in percent."""

    test_top1: float
    test_top5: float
    test_nll: float  # nats
    test_ece: float  # percent
    test_aurc: float  # x 1000
    test_eaurc: float  # x 1000
    class_recall: tuple[float, ...]  # percent, one for each class
    val_acc: float | None
    best_epoch: int  # of "train"
    best_acc: float  # on best_split: a best epoch chosen on the test set is optimistic
    best_split: str  # "val" or "test"
    n_train: int
    student_params: int
    train_seconds: float  # sum over epochs, also of "pretrain" and those before a resume; so are the next three
    teacher_seconds: float = 0.0
    shared_seconds: float = 0.0
    teacher_epochs: int = 0


class DivergedError(RuntimeError):
    """A loss term became NaN or infinite."""
