"""The columns of the result files. One row a trial in TRIALS, one row an epoch in EPOCHS.

Accuracies, ECE and recall are in percent, AURC and E-AURC times 1000, NLL in nats, times in seconds.
A TRIALS row is written last, so its presence means that the trial has ended.
"""

from enum import StrEnum
from typing import Literal

import pyarrow as pa


class Status(StrEnum):
    """How a trial ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"  # by a scheduler
    DIVERGED = "diverged"  # NaN or Inf in a loss term
    FAILED = "failed"


VERSION = "5"
PUBLISHED = "published"  # stands for the method of a teacher whose weights were trained elsewhere
SEARCHED = "*"  # the student of a pair whose student is searched
FAMILY = "family"  # the dimension that says a searched student's family; `resnet.depth` and `resnet.width` are resnet's
_METADATA = {"kdsweep.schema": VERSION}
_UTC = pa.timestamp("ms", tz="UTC")


def _field(name: str, kind: pa.DataType, *, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null)


IDENTITY = [
    _field("trial_id", pa.string()),
    _field("role", pa.string()),  # "student", "teacher" or "probe"
    _field("dataset", pa.string()),
    _field("fraction", pa.float64()),
    _field("subset_seed", pa.int64()),
    _field("val_size", pa.int64()),
    _field("image_size", pa.int64(), null=True),  # null, as the next three: the data set's own
    _field("channels", pa.int64(), null=True),
    _field("mean", pa.list_(pa.float64()), null=True),
    _field("std", pa.list_(pa.float64()), null=True),
    _field("folder_sha256", pa.string(), null=True),  # of a person's own images
    _field("source_id", pa.string(), null=True),  # of a probe: the trial whose student it is; so are the next two
    _field("source_dataset", pa.string(), null=True),
    _field("probe", pa.string(), null=True),  # how the learning rate was chosen, canonical JSON
    _field("teacher", pa.string(), null=True),  # null where the method looks at no teacher
    _field("teacher_id", pa.string(), null=True),
    _field("self_taught", pa.bool_()),  # the teacher is of the student's architecture whatever the pair
    _field("assistant_ids", pa.list_(pa.string()), null=True),  # in order; null where the method has no assistants
    _field("student", pa.string()),
    _field("method", pa.string()),
    _field("method_version", pa.string()),
    _field("params", pa.string()),  # the method's full configuration, canonical JSON
    # The recipe and the seeds: null of a teacher whose weights were trained elsewhere.
    _field("epochs", pa.int64(), null=True),
    _field("batch_size", pa.int64(), null=True),
    _field("lr", pa.float64(), null=True),
    _field("lr_milestones", pa.list_(pa.int64()), null=True),
    _field("lr_gamma", pa.float64(), null=True),
    _field("momentum", pa.float64(), null=True),
    _field("nesterov", pa.bool_(), null=True),
    _field("warmup_epochs", pa.int64(), null=True),  # null: none
    _field("drop_last", pa.bool_(), null=True),  # null: the last, smaller batch is kept
    _field("weight_decay", pa.float64(), null=True),
    _field("augment", pa.bool_(), null=True),
    _field("precision", pa.string(), null=True),
    _field("seed", pa.int64(), null=True),
    _field("view_seed", pa.int64(), null=True),
]
SEARCH = [  # null of a trial that a grid planned
    _field("phase", pa.string(), null=True),  # "search", or "confirm" for a winner's training on all images
    _field("study", pa.string(), null=True),  # the search that the point belongs to, 16 hex digits
    _field("objectives", pa.list_(pa.string()), null=True),  # names of OBJECTIVES; the score is their order's
    _field("seeds", pa.list_(pa.int64()), null=True),  # over which the score of a point is the mean
    _field("space", pa.string(), null=True),  # what was searched, canonical JSON: {name: dimension}
    _field("point", pa.string(), null=True),  # the values tried, canonical JSON: {name: value}
    _field("number", pa.int64(), null=True),  # of the point in its study, in the order of asking, from 0
    _field("origin", pa.string(), null=True),  # who proposed the point: "start", "prior" or "sampler"
    _field("student_macs", pa.int64(), null=True),  # multiply-adds an image; null unless the student is searched
    _field("latency_ms", pa.float64(), null=True),  # of an image on the driver's CPU; null unless the search weighs it
]
OUTCOME = [
    _field("status", pa.string()),
    _field("error_type", pa.string(), null=True),
    _field("error", pa.string(), null=True),  # traceback
    _field("epochs_done", pa.int64()),  # of both stages
]
# What a search may weigh: the column, and Optuna's direction.
OBJECTIVES: dict[str, tuple[str, Literal["maximize", "minimize"]]] = {
    "val_acc": ("val_acc", "maximize"),
    "params": ("student_params", "minimize"),
    "macs": ("student_macs", "minimize"),
    "latency_ms": ("latency_ms", "minimize"),
}
METRICS = [  # null unless completed; val_acc and train_seconds also of a stopped trial, at its last epoch
    _field("val_acc", pa.float64(), null=True),
    _field("test_top1", pa.float64(), null=True),
    _field("test_top5", pa.float64(), null=True),
    _field("test_nll", pa.float64(), null=True),
    _field("test_ece", pa.float64(), null=True),
    _field("test_aurc", pa.float64(), null=True),
    _field("test_eaurc", pa.float64(), null=True),
    _field("class_recall", pa.list_(pa.float64()), null=True),
    _field("best_epoch", pa.int64(), null=True),
    _field("best_acc", pa.float64(), null=True),
    _field("best_split", pa.string(), null=True),
    _field("n_train", pa.int64(), null=True),
    _field("student_params", pa.int64(), null=True),
    _field("train_seconds", pa.float64(), null=True),
    _field("teacher_seconds", pa.float64(), null=True),  # of these: on outputs of teachers for whole epochs
    _field("shared_seconds", pa.float64(), null=True),  # and on the files in which trials share them
    _field("teacher_epochs", pa.int64(), null=True),  # how many epochs the teacher's outputs were computed for
]
PROVENANCE = [
    _field("sweep", pa.string()),
    _field("spec_sha256", pa.string()),
    _field("kdsweep", pa.string()),
    _field("git_commit", pa.string(), null=True),  # with "+" where the tree had changes
    _field("python", pa.string()),
    _field("torch", pa.string()),
    _field("host", pa.string()),
    _field("device", pa.string()),
    _field("replayed", pa.string(), null=True),  # `sweep/id` of what was returned instead of training
    _field("cpus", pa.int64()),
    _field("predicted_seconds", pa.float64(), null=True),  # of train_seconds - teacher_seconds - shared_seconds
    _field("started_at", _UTC),
    _field("ended_at", _UTC),
]
TRIALS = pa.schema([*IDENTITY, *SEARCH, *OUTCOME, *METRICS, *PROVENANCE], metadata=_METADATA)

EPOCHS = pa.schema(
    [
        _field("trial_id", pa.string()),
        _field("stage", pa.string()),  # "train", or "pretrain" for a stage before the epochs of the recipe
        _field("epoch", pa.int64()),  # 1-based, within the stage
        _field("lr", pa.float64()),
        _field("terms", pa.map_(pa.string(), pa.float64())),
        _field("train_acc", pa.float64(), null=True),  # null in "pretrain", as are the other two
        _field("val_acc", pa.float64(), null=True),
        _field("test_acc", pa.float64(), null=True),
        _field("seconds", pa.float64()),
        _field("teacher_seconds", pa.float64(), null=True),  # of these, as in TRIALS
        _field("shared_seconds", pa.float64(), null=True),
        _field("teacher_epochs", pa.int64(), null=True),
    ],
    metadata=_METADATA,
)
