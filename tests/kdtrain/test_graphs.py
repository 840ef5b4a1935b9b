"""The student's passes as CUDA graphs: what is recorded, and for which batches. CUDA's recorder is replaced."""

from dataclasses import asdict

import pytest
import torch

from kdtrain import models
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TrialConfig, Where
from kdtrain.forward import forward
from kdtrain.graphs import Graphed
from kdtrain.loop import Training

MAPS = frozenset({"stages", "preact"})


@pytest.fixture
def recorded(monkeypatch):
    """The callables that were recorded. As CUDA's recorder does, it runs each a few times first."""
    found = []

    def record(module, samples, allow_unused_input):
        for _ in range(3):
            sum(output.sum() for output in module(*samples)).backward()
        module.zero_grad(set_to_none=True)
        found.append(module)

        def replay(images):
            assert images.shape == samples[0].shape, "a graph takes batches of one size"
            return module(images)

        return replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return found


def network():
    torch.manual_seed(0)
    return models.build("resnet8", 10, 1).train()


@pytest.mark.parametrize("maps", [frozenset(), frozenset({"stages"}), frozenset({"preact"}), MAPS])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_outputs_gradients_and_statistics_are_those_of_a_plain_pass(recorded, maps, precision):
    images = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    plain, student = network(), network()
    graphed = Graphed(student, images, maps, precision)
    for step in range(2):
        expected, found = forward(plain, images + step, maps, precision), graphed(images + step)
        for mine, its in zip(found, expected, strict=True):
            assert type(mine) is type(its)
            torch.testing.assert_close(mine, its, rtol=0, atol=0)
        for outputs in (expected, found):
            (outputs.logits.square().mean() + sum(stage.mean() for stage in outputs.stages)).backward()
    for mine, its in zip(student.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)
    assert all(torch.equal(mine, its) for mine, its in zip(student.buffers(), plain.buffers(), strict=True))


def trial(batch_size=40):
    return TrialConfig(
        data=DataConfig(dataset="fashion_mini", fraction=0.017), train=Recipe(epochs=2, batch_size=batch_size, lr=0.01),
        student="resnet8", method=MethodRef(name="vanilla"),
    )  # fmt: skip


def test_a_trial_records_once_and_smaller_batches_pass_as_ever(recorded):
    plain, training = (Training(trial(), Where(device="cpu")) for _ in range(2))
    assert len(plain.batches.train) % 40, "the last batch is smaller"
    training.graphs = True
    for each in (plain, training):
        while not each.done:
            each.run_epoch()
    assert len(recorded) == 1
    assert recorded[0].student is training.student

    def timeless(record):
        return {key: value for key, value in asdict(record).items() if not key.endswith("seconds")}

    assert list(map(timeless, training.records)) == list(map(timeless, plain.records))
    assert training.weights() == plain.weights()


def test_graphs_are_refused_where_there_is_no_gpu():
    with pytest.raises(
        ConfigError, match=r"^run\.cuda_graphs must be false on a device that is no GPU, but got true on cpu\.$"
    ):
        Training(trial(), Where(device="cpu", cuda_graphs=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    where = Where(device="cuda", cuda_graphs=True)
    training = Training(trial(), where)
    while not training.done:
        training.run_epoch()
    assert training.graph is not None
    assert training.records[-1].terms["ce"] < training.records[0].terms["ce"]
