"""The linear probe: a frozen student, a rate chosen on held-out images, and SGD as a slow loop gives it."""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdtrain import data, probe, subset
from kdtrain.config import ConfigError, DataConfig, MethodRef, Probe, Recipe, TrialConfig, Where
from kdtrain.data.dataset import Info
from kdtrain.data.memory import Arrays, opener
from kdtrain.draws import Stream, permutation
from kdtrain.loop import Training
from kdtrain.probe import Features, Probing, choose, classifier, fit
from kdtrain.record import DivergedError

WHERE = Where(device="cpu")
SOURCE_MEAN, SOURCE_STD = (0.4, 0.5), (0.3, 0.2)


def images(labels, channels, seed):
    """Noise, brighter by class."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 60, (len(labels), channels, 12, 12), generator=generator)
    return (noise + 45 * labels[:, None, None, None]).to(torch.uint8)


def data_set(name, n, num_classes, channels, mean, std):
    labels = torch.arange(n) % num_classes, torch.arange(20) % num_classes
    arrays = Arrays(images(labels[0], channels, n), labels[0], images(labels[1], channels, n + 1), labels[1])
    return Info(
        name=name, num_classes=num_classes, in_channels=channels, image_size=12, mean=mean, std=std,
        open=opener(lambda where: arrays),
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def sets():
    """Images of 2 channels with 3 classes, others with 4, and grey ones."""
    with pytest.MonkeyPatch.context() as patch:
        for info in (
            data_set("source", 24, 3, 2, SOURCE_MEAN, SOURCE_STD),
            data_set("target", 60, 4, 2, (0.1, 0.1), (0.1, 0.1)),
            data_set("grey", 24, 4, 1, (0.1,), (0.1,)),
        ):
            patch.setitem(data.DATASETS, info.name, info)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A resnet8 trained for an epoch, and its file of weights."""
    torch.set_num_threads(1)
    trial = TrialConfig(
        data=DataConfig(dataset="source"), train=Recipe(epochs=1, batch_size=8), student="resnet8",
        method=MethodRef(name="vanilla"),
    )  # fmt: skip
    training = Training(trial, WHERE)
    training.run_epoch()
    path = tmp_path_factory.mktemp("source") / "model.safetensors"
    path.write_bytes(training.weights())
    return training, str(path)


def trial(key="0123", dataset="target", student="resnet8", seed=3, **fields):
    """A probe by the recommended protocol, short. `fields`: of the data, the probe or the recipe."""
    parts = [
        {"mean": SOURCE_MEAN, "std": SOURCE_STD} if dataset != "grey" else {},
        {"lrs": (0.01, 0.1, 1.0), "holdout": 0.2},
        {"epochs": 5, "batch_size": 16, "lr_milestones": (3, 4), "weight_decay": 0.0, "augment": False},
    ]
    known = [DataConfig.model_fields, Probe.model_fields, Recipe.model_fields]
    for part, names in zip(parts, known, strict=True):
        part |= {name: fields.pop(name) for name in list(fields) if name in names}
    assert not fields
    images, probed, recipe = parts
    return TrialConfig(
        data=DataConfig(dataset=dataset, **images), train=Recipe(**recipe), student=student,
        method=MethodRef(name="vanilla"), seed=seed,
        probe=Probe(source=key, dataset="source", num_classes=3, **probed),
    )  # fmt: skip


@pytest.fixture
def probing(source):
    def make(**fields):
        training, path = source
        return Probing(trial(training.id, **fields), WHERE, path)

    return make


def told(probed):
    """All that must be equal bit for bit."""
    records = [{**asdict(record), "seconds": None} for record in probed.records]
    return records, {**asdict(probed.result), "train_seconds": None}, probed.lr


def features(n=50, width=6, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % num_classes
    return Features(torch.randn(n, width, generator=generator) + 2 * F.one_hot(labels, width), labels)


def slow_fit(weight, bias, x, y, recipe, seed):
    """The losses of all images by epoch, in the order seen, and the last weights; w += -lr v, v = m v + g + d w."""
    v_w, v_b, losses = np.zeros_like(weight), np.zeros_like(bias), []
    for epoch in range(1, recipe.epochs + 1):
        lr = recipe.lr * recipe.lr_gamma ** sum(epoch > milestone for milestone in recipe.milestones)
        order, seen = permutation(seed, Stream.ORDER, epoch, len(y)), []
        for start in range(0, len(y), recipe.batch_size):
            rows = order[start : start + recipe.batch_size]
            g_w, g_b = np.zeros_like(weight), np.zeros_like(bias)
            for i in rows:
                z = weight @ x[i] + bias
                p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
                seen.append(-math.log(p[y[i]]))
                error = (p - np.eye(len(bias))[y[i]]) / len(rows)
                g_w += np.outer(error, x[i])
                g_b += error
            v_w = recipe.momentum * v_w + g_w + recipe.weight_decay * weight
            v_b = recipe.momentum * v_b + g_b + recipe.weight_decay * bias
            weight, bias = weight - lr * v_w, bias - lr * v_b
        losses.append(seen)
    return np.array(losses), weight, bias


class TestFit:
    @pytest.mark.parametrize("batch_size", [16, 25, 64])  # with a rest of 2, none, larger than the 50 images
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_follows_sgd_with_momentum_and_milestones(self, batch_size, weight_decay):
        recipe = Recipe(
            epochs=6, batch_size=batch_size, lr=0.3, lr_milestones=(3, 5), weight_decay=weight_decay, momentum=0.9
        )
        x, y = features()
        linear = classifier(6, 4, 1).double()
        start = [parameter.detach().numpy().copy() for parameter in linear.parameters()]
        losses, weight, bias = slow_fit(*start, x.double().numpy(), y.numpy(), recipe, 7)
        steps = list(fit(linear, Features(x.double(), y), recipe, 7))
        found = [F.cross_entropy(step.logits, step.labels, reduction="none").numpy() for step in steps]
        np.testing.assert_allclose(found, losses, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(linear.weight.detach(), weight, rtol=1e-9)
        np.testing.assert_allclose(linear.bias.detach(), bias, rtol=1e-9)
        assert [step.lr for step in steps] == pytest.approx([0.3, 0.3, 0.3, 0.03, 0.03, 0.003])
        assert [step.epoch for step in steps] == [1, 2, 3, 4, 5, 6]

    def test_classifier_is_drawn_from_its_seed_alone(self):
        torch.manual_seed(5)
        expected = torch.rand(2)
        torch.manual_seed(5)
        one, same, other = (classifier(6, 4, seed) for seed in (1, 1, 2))
        assert torch.equal(torch.rand(2), expected)
        assert torch.equal(one.weight, same.weight)
        assert not torch.equal(one.weight, other.weight)


class TestChoose:
    def test_the_rate_that_learns_wins_over_one_too_small_and_one_that_diverges(self):
        x, y = features(n=200)
        chosen = choose(Features(x, y), trial(lrs=(1e38, 0.1, 1e-9)), 4)
        assert chosen.lr == 0.1
        assert chosen.val_acc > 60  # the centres are 2 apart in each of two directions; 25 by chance

    def test_accuracy_is_that_of_a_classifier_trained_without_the_held_out_images(self):
        x, y = features(n=200)
        chosen = choose(Features(x, y), trial(lrs=(0.1,), holdout=0.3, subset_seed=8), 4)
        rest, held = subset.split(y, 1.0, 60, 8)
        assert len(held) == 60
        linear = classifier(6, 4, 3)
        list(fit(linear, Features(x[rest], y[rest]), trial().train.model_copy(update={"lr": 0.1}), 3))
        assert chosen.val_acc == 100 * (linear(x[held]).argmax(1) == y[held]).double().mean().item()

    def test_of_equal_rates_the_smaller_is_taken(self):
        labels = torch.arange(40) % 2
        apart = Features(20 * F.one_hot(labels, 2).float(), labels)  # any rate learns it
        chosen = choose(apart, trial(lrs=(0.5, 0.1, 0.2)), 2)
        assert chosen == (0.1, 100.0)

    def test_rates_that_all_diverge(self):
        with pytest.raises(DivergedError, match=r"diverged at each learning rate of \[1e\+38, 3e\+38\]"):
            choose(features(), trial(lrs=(1e38, 3e38)), 4)

    @pytest.mark.parametrize(("holdout", "match"), [(0.001, "must hold an image out"), (0.99, "leaves class")])
    def test_holdout_without_images_or_that_leaves_none(self, holdout, match):
        with pytest.raises(ConfigError, match=match):
            choose(features(), trial(holdout=holdout), 4)


class TestProbing:
    def test_student_is_the_one_in_the_file_and_unchanged(self, source, probing):
        started = probing()
        assert not any(parameter.requires_grad for parameter in started.student.parameters())
        found = started.student.state_dict()
        wanted = {name: tensor.clone() for name, tensor in source[0].student.state_dict().items()}
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        started.run()
        after = started.student.state_dict()
        assert after.keys() == wanted.keys()  # with the buffers of BatchNorm
        assert all(torch.equal(after[name], tensor) for name, tensor in wanted.items())

    def test_features_are_the_pooled_vectors_in_eval_mode_of_plain_images(self, source, probing):
        student, info = source[0].student.eval(), data.DATASETS["target"]
        arrays = info.open(info, WHERE, torch.device("cpu"))
        mean, std = (torch.tensor(values).view(2, 1, 1) for values in (SOURCE_MEAN, SOURCE_STD))
        for split, part in (("train", arrays.train), ("test", arrays.test)):
            found = probing().features(split)
            with torch.no_grad():
                wanted = student((part.images.float() / 255 - mean) / std).pooled
            torch.testing.assert_close(found.values, wanted, rtol=1e-4, atol=1e-5)
            assert torch.equal(found.labels, part.labels)
            assert found.values.dtype == torch.float32

    def test_features_do_not_depend_on_the_batches(self, probing, monkeypatch):
        whole = probing().features("train")
        monkeypatch.setattr("kdtrain.batches.EVAL_BATCH", 7)
        torch.testing.assert_close(probing().features("train").values, whole.values, rtol=1e-5, atol=1e-6)

    def test_final_classifier_is_trained_on_all_images_at_the_chosen_rate(self, probing):
        started = probing()
        probed = started.run()
        train, test = started.features("train"), started.features("test")
        assert probed.lr == choose(train, started.trial, 4).lr
        recipe = started.trial.train.model_copy(update={"lr": probed.lr})
        losses, weight, bias = slow_fit(
            *(p.detach().double().numpy() for p in classifier(64, 4, 3).parameters()),
            train.values.double().numpy(), train.labels.numpy(), recipe, 3,
        )  # fmt: skip
        assert [record.terms["ce"] for record in probed.records] == pytest.approx(losses.mean(1).tolist(), rel=1e-3)
        predicted = (test.values.double().numpy() @ weight.T + bias).argmax(1)
        assert probed.result.test_top1 == pytest.approx(100 * (predicted == test.labels.numpy()).mean())

    def test_records_and_result_belong_together(self, probing):
        started = probing()
        records, result, lr = started.run()
        assert [(record.stage, record.epoch) for record in records] == [("train", epoch) for epoch in range(1, 6)]
        assert [record.lr for record in records] == pytest.approx([lr, lr, lr, lr / 10, lr / 100])
        accs = [record.test_acc for record in records]
        assert (result.best_split, result.best_acc) == ("test", max(accs))
        assert result.best_epoch == accs.index(max(accs)) + 1
        assert result.test_top1 == accs[-1] > 40  # 25 by chance
        assert result.val_acc == choose(started.features("train"), started.trial, 4).val_acc
        assert all(record.val_acc is None for record in records)
        assert (result.n_train, len(result.class_recall)) == (60, 4)
        assert result.student_params == sum(p.numel() for p in started.student.parameters())
        assert result.train_seconds == pytest.approx(sum(record.seconds for record in records))

    def test_two_runs_are_equal_and_another_seed_is_not(self, probing):
        first = told(probing().run())
        torch.manual_seed(99)
        assert told(probing().run()) == first
        assert told(probing(seed=4).run()) != first

    def test_fraction_leaves_images_out_of_all_of_it(self, probing):
        started = probing(fraction=0.4, subset_seed=2)
        kept = subset.split(torch.arange(60) % 4, 0.4, 0, 2).train
        assert torch.equal(started.features("train").labels, kept % 4)
        assert started.run().result.n_train == 24

    def test_final_classifier_that_diverges(self, probing, monkeypatch):
        monkeypatch.setattr(probe, "choose", lambda train, trial, num_classes: probe.Choice(1e38, 50.0))
        with pytest.raises(DivergedError, match=r"the loss term 'ce' became (nan|inf) in epoch [12]"):
            probing().run()

    def test_classifier_that_breaks_in_its_last_step(self, probing, monkeypatch):
        started = probing(epochs=1, batch_size=100, lr_milestones=())
        large = {split: started.features(split) for split in ("train", "test")}
        large = {split: Features(1e6 * values, labels) for split, (values, labels) in large.items()}
        monkeypatch.setattr(started, "features", large.__getitem__)
        monkeypatch.setattr(probe, "choose", lambda train, trial, num_classes: probe.Choice(1e38, 50.0))
        with pytest.raises(DivergedError, match="predictions became NaN or infinite"):
            started.run()

    def test_refuses_damaged_weights(self, source, tmp_path):
        content = bytearray(Path(source[1]).read_bytes())
        content[-5] ^= 1
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is damaged"):
            Probing(trial(source[0].id), WHERE, str(path))

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"augment": True}, "train.augment must be False in a linear probe, but got True"),
            ({"precision": "bf16"}, "train.precision must be fp32"),
            ({"warmup_epochs": 2}, "train.warmup_epochs must be None"),
            ({"drop_last": True}, "train.drop_last must be None"),
            ({"val_size": 4}, "data.val_size must be 0 in a linear probe, but got 4"),
            ({"dataset": "grey"}, r"probe.source .*conv1.weight is \[16, 2, 3, 3\] and not \[16, 1, 3, 3\]"),
            ({"student": "resnet14"}, "resnet14 with 3 classes"),
        ],
    )
    def test_refuses_what_it_cannot_do(self, fields, match, probing):
        with pytest.raises(ConfigError, match=match):
            probing(**fields)

    def test_refuses_the_weights_of_another_trial(self, source):
        with pytest.raises(ConfigError, match=f"must be a file of 0123, but .* holds {source[0].id}"):
            Probing(trial("0123"), WHERE, source[1])
