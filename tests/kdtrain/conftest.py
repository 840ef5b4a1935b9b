"""What the tests of the methods share: golden inputs, slow oracles and tiny stand-ins for networks."""

import math
from dataclasses import asdict, replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kdtrain import data, methods, models
from kdtrain.checkpoint import pack_weights
from kdtrain.config import MethodRef, Where
from kdtrain.data.memory import Arrays, opener
from kdtrain.data.small import read_fashion_mini
from kdtrain.methods.base import Batch, Method, Setting
from kdtrain.models.outputs import Model, Outputs


def wave(shape, a, b):
    """sin(a n + b) for n = 0, 1, ... in row-major order, float64."""
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(a * n + b).view(shape)


class Golden(NamedTuple):
    """Inputs for which values were computed with the authors' code, or by hand where there is none."""

    zs: Tensor = 3 * wave((8, 10), 0.37, 0.1)
    zt: Tensor = 5 * wave((8, 10), 0.73, 0.5)
    zc: Tensor = 4 * wave((8, 10), 0.59, 0.8)
    y: Tensor = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    fs: Tensor = wave((8, 6, 4, 4), 0.11, 0.2).abs()
    ft: Tensor = wave((8, 6, 4, 4), 0.23, 0.4).abs()
    ftb: Tensor = wave((8, 12, 8, 8), 0.17, 0.6).abs()
    vs: Tensor = wave((8, 16), 0.31, 0.3)
    vt: Tensor = wave((8, 16), 0.53, 0.9)


class Slow:
    """Oracles in plain Python: one sample, one class at a time."""

    @staticmethod
    def log_softmax(row, tau=1.0):
        total = math.log(sum(math.exp(z / tau) for z in row))
        return [z / tau - total for z in row]

    @classmethod
    def cross_entropies(cls, z, y):
        """-log softmax(z)[y] of each sample."""
        return [-cls.log_softmax(row)[label] for row, label in zip(z.tolist(), y.tolist(), strict=True)]

    @classmethod
    def kls(cls, z_s, z_t, tau):
        """tau^2 sum_c p_t (log p_t - log p_s) of each sample."""
        values = []
        for row_s, row_t in zip(z_s.tolist(), z_t.tolist(), strict=True):
            pairs = zip(cls.log_softmax(row_s, tau), cls.log_softmax(row_t, tau), strict=True)
            values.append(tau**2 * sum(math.exp(t) * (t - s) for s, t in pairs))
        return values

    @staticmethod
    def mean(values):
        return sum(values) / len(values)


class ToyStudent(Model):
    """A linear classifier, of which methods see the head."""

    def __init__(self, width, num_classes):
        super().__init__()
        self.fc = nn.Linear(width, num_classes)

    def outputs(self, x):
        return Outputs(self.fc(x), x, x, (), ())

    @property
    def head(self):
        return self.fc

    @property
    def trunk(self):
        return ()

    @property
    def preact_norms(self):
        return ()


class Toy:
    """Builders: what a method sees of its networks, made of given tensors."""

    @staticmethod
    def outputs(logits=None, pooled=None, stages=(), preact=(), stem=None):
        """Outputs of the tensors given; empty ones for the rest."""
        empty = torch.zeros(0)
        logits, pooled, stem = (empty if value is None else value for value in (logits, pooled, stem))
        return Outputs(logits, pooled, stem, tuple(stages), tuple(preact))

    @classmethod
    def taught(cls, method, *args, **kwargs):
        """The outputs of a teacher as a method sees them: with its digests in place of maps."""
        outputs = cls.outputs(*args, **kwargs)
        return methods.digested(method.digests(), outputs)._replace(stem=outputs.stem[:0], stages=())

    @staticmethod
    def batch(labels, epoch=1):
        return Batch(torch.zeros(len(labels), 1, 1, 1), labels, torch.arange(len(labels)), epoch)

    @classmethod
    def setting(cls, d_s=16, d_t=16, maps_s=(), maps_t=(), stem_s=None, stem_t=None, num_classes=10, epochs=240):
        """`maps_*`: (channels, height) of each stage, also before its last ReLU; `stem_*` of the stem."""

        def shape(size):
            return size and torch.zeros(1, size[0], size[1], size[1])

        shapes = []
        for d, maps, stem in ((d_s, maps_s, stem_s), (d_t, maps_t, stem_t)):
            stages = [shape(size) for size in maps]
            shapes.append(cls.outputs(torch.zeros(1, num_classes), torch.zeros(1, d), stages, stages, shape(stem)))
        torch.manual_seed(0)
        student, teacher = (ToyStudent(d, num_classes).double() for d in (d_s, d_t))
        return Setting(student, shapes[0], teacher, shapes[1], num_classes, epochs)

    @classmethod
    def method(cls, name, params=None, setting=None) -> Method:
        """The method in float64."""
        ref = MethodRef(name=name, params=params or {})
        return methods.build(ref, setting or cls.setting()).double()


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are not worth more; a trial trained in a test may have set another number."""
    torch.set_num_threads(1)


@pytest.fixture
def golden():
    return Golden()


@pytest.fixture
def slow():
    return Slow


@pytest.fixture
def toy():
    return Toy


def timeless(values):
    """What does not depend on how fast the machine was."""
    return {key: value for key, value in values.items() if not key.endswith("seconds")}


@pytest.fixture(scope="session")
def outcome():
    """A function: all of a trained trial that must be equal bit for bit, metrics, epochs and weights."""

    def found(training):
        records = [timeless(asdict(record)) for record in training.records]
        return timeless(asdict(training.result())), records, training.weights()

    return found


@pytest.fixture(scope="module")
def mini():
    """The first 61 training and 40 test images of fashion_mini, as a data set."""
    info = data.DATASETS["fashion_mini"]
    arrays = Arrays(*(tensor[:n] for tensor, n in zip(read_fashion_mini(Where()), (61, 61, 40, 40), strict=True)))
    data.DATASETS["mini"] = replace(info, name="mini", open=opener(lambda where: arrays))
    yield
    del data.DATASETS["mini"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Paths of the weights of teachers, by architecture: untrained, their BatchNorm has seen noise."""
    folder = tmp_path_factory.mktemp("teachers")
    for name in ("resnet14", "resnet8", "vgg8", "wrn_16_1"):
        torch.manual_seed(5)
        model = models.build(name, 10, 1).train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(16, 1, 28, 28))
        (folder / name).write_bytes(pack_weights(model.state_dict(), {}, name))
    return folder
