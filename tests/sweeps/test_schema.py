"""The schemas hold exactly what the trainer emits, with the same types."""

import types
from dataclasses import fields
from typing import Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pytest

from kdtrain.config import DataConfig, MethodRef, TrialConfig
from kdtrain.record import EpochRecord, TrialResult
from sweeps import rows
from sweeps.schema import EPOCHS, IDENTITY, METRICS, TRIALS, VERSION

ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def arrow(hint: object) -> pa.DataType:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        return pa.list_(ARROW[get_args(hint)[0]])
    if get_origin(hint) is dict:
        return pa.map_(*(ARROW[part] for part in get_args(hint)))
    return ARROW[hint]


def test_epochs_are_epoch_records():
    hints = get_type_hints(EpochRecord)
    assert EPOCHS.names == ["trial_id", *(field.name for field in fields(EpochRecord))]
    assert all(EPOCHS.field(name).type.equals(arrow(hint)) for name, hint in hints.items())


def test_metrics_are_trial_results():
    hints = get_type_hints(TrialResult)
    assert {field.name for field in METRICS} == set(hints)
    assert all(TRIALS.field(name).type.equals(arrow(hint)) for name, hint in hints.items())


def test_identity_row_has_exactly_the_identity_columns():
    trial = TrialConfig(data=DataConfig(dataset="cifar10"), student="resnet8", method=MethodRef(name="vanilla"))
    row = rows.identity(trial, "student")
    assert set(row) == {field.name for field in IDENTITY}
    pa.Table.from_pylist([row], schema=pa.schema(IDENTITY))


@pytest.mark.parametrize("schema", [TRIALS, EPOCHS])
def test_files_say_their_schema_version(schema):
    assert schema.metadata == {b"kdsweep.schema": VERSION.encode()}
