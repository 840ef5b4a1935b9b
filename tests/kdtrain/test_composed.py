import re
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.base import Method
from kdtrain.methods.composed import Composed
from kdtrain.methods.kd import KD

MAPS = [(6, 4)] * 3


class Recorder(Method):
    """A part that writes down which hooks were called."""

    calls: ClassVar[list[str]] = []

    def __init__(self, name, toy):
        super().__init__(None, toy.setting())
        self.name = name

    def loss(self, batch, student, teacher):
        return {self.name: torch.zeros(())}

    def prepare(self, batches):
        self.calls.append(f"{self.name}: prepare {list(batches)}")

    def start_epoch(self, epoch):
        self.calls.append(f"{self.name}: start_epoch {epoch}")


class Other(KD):
    """Another method with the terms of KD."""


def composed(toy, name, params=None):
    return toy.method(name, params, toy.setting(maps_s=MAPS, maps_t=MAPS))


def terms_of(toy, golden, method, epoch=1):
    student = toy.outputs(golden.zs, golden.vs, [golden.fs] * 3)
    teacher = toy.outputs(golden.zt, golden.vt, [golden.ft] * 3)
    return method.loss(toy.batch(golden.y, epoch), student, teacher)


def values(terms):
    return {name: term.item() for name, term in terms.items()}


class TestTerms:
    def test_the_union_with_one_cross_entropy(self, toy, golden, slow):
        method = composed(toy, "sp+kd")
        expected = {
            "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),  # sp's: weight 1, not kd's 0.1
            "sp": 3000 * 0.0032416621,
            "kd": slow.mean(slow.kls(golden.zs, golden.zt, 4.0)),  # alpha 1, not 0.9
        }
        assert values(terms_of(toy, golden, method)) == pytest.approx(expected, rel=1e-6)

    def test_the_cross_entropy_is_the_first_parts(self, toy, golden, slow):
        terms = terms_of(toy, golden, composed(toy, "kd+sp"))
        ce = slow.mean(slow.cross_entropies(golden.zs, golden.y))
        kl = slow.mean(slow.kls(golden.zs, golden.zt, 4.0))
        assert values(terms) == pytest.approx({"ce": 0.1 * ce, "kd": 0.9 * kl, "sp": 3000 * 0.0032416621}, rel=1e-6)

    def test_a_part_alone_has_the_terms_it_has_in_company(self, toy, golden):
        torch.manual_seed(0)
        alone = composed(toy, "fitnet")
        torch.manual_seed(0)
        together = composed(toy, "fitnet+kd+sp")
        terms = values(terms_of(toy, golden, together))
        assert list(terms) == ["ce", "hint", "kd", "sp"]
        assert values(terms_of(toy, golden, alone)) == {name: terms[name] for name in ("ce", "hint")}

    def test_no_cross_entropy_where_the_first_part_has_none(self, toy, golden):
        method = composed(toy, "cid+kd")
        names = [set(terms_of(toy, golden, method, epoch)) for epoch in (1, 21)]
        assert names == [{"kl", "sr", "cr", "kd"}, {"ce", "kl", "sr", "cr", "kd"}]

    def test_two_terms_of_one_name_are_refused(self, toy, golden):
        setting = toy.setting()
        method = Composed({"kd": KD(KD.Config(), setting), "other": Other(KD.Config(), setting)}, setting)
        with pytest.raises(ValueError, match=r"^two methods of kd\+other have a term named 'kd'\.$"):
            terms_of(toy, golden, method)


class TestHooks:
    def test_prediction_is_the_first_parts(self, toy, golden):
        outputs = toy.outputs(golden.zs, golden.vs, [golden.fs] * 3)
        assert composed(toy, "kd+sp").predict(outputs) is golden.zs
        cid_first = composed(toy, "cid+kd")
        classifier = cid_first.parts[0].classifier
        # The centres are zero at first, so the context is.
        expected = F.linear(torch.cat([golden.vs, torch.zeros_like(golden.vs)], 1), classifier.weight, classifier.bias)
        torch.testing.assert_close(cid_first.predict(outputs), expected)

    @pytest.mark.parametrize("name", ["kd+cid", "sp+cid+kd", "fitnet+kd+cid"])
    def test_a_part_with_its_own_prediction_must_stand_first(self, toy, name):
        message = rf"^cid must stand first in '{re.escape(name)}': it predicts with its own classifier\.$"
        with pytest.raises(ConfigError, match=message):
            composed(toy, name)

    @pytest.mark.parametrize("name", ["cid+kd", "cid+fitnet", "cid+sp", "cid+ipwd", "cid+sp+fitnet+ipwd+kd"])
    def test_such_a_part_may_stand_before_any_other(self, toy, golden, name):
        method = composed(toy, name)
        assert "ce" in terms_of(toy, golden, method, epoch=21)
        outputs = toy.outputs(golden.zs, golden.vs, [golden.fs] * 3)
        assert torch.equal(method.predict(outputs), method.parts[0].predict(outputs))

    def test_every_part_is_called(self, toy):
        method = Composed({"a": Recorder("a", toy), "b": Recorder("b", toy)}, toy.setting())
        Recorder.calls.clear()
        method.prepare([1, 2])
        method.start_epoch(3)
        assert Recorder.calls == [
            "a: prepare [1, 2]", "b: prepare [1, 2]", "a: start_epoch 3", "b: start_epoch 3"
        ]  # fmt: skip

    def test_parameters_and_groups_of_all_parts(self, toy):
        method = composed(toy, "cid+fitnet+ipwd")
        grouped = [parameter for group in method.param_groups() for parameter in group["params"]]
        assert len(grouped) == len(set(grouped)) == len(list(method.parameters())) == 4 + 2 + 2 + 2
        assert set(grouped) == set(method.parameters())
        assert [group.get("weight_decay") for group in method.param_groups()] == [None, 0.0, None, None]

    @pytest.mark.parametrize(("bn", "trains"), [("eval", False), ("train", True)])
    def test_the_teacher_trains_if_a_part_wants_it(self, toy, bn, trains):
        assert composed(toy, "sp+ipwd", {"ipwd": {"teacher_bn": bn}}).teacher_trains is trains

    def test_state_of_all_parts(self, toy):
        names = composed(toy, "cid+fitnet").state_dict()
        assert sum(name.endswith(".centres") for name in names) == 1
        assert sum("regressor" in name for name in names) == 2 + 2 + 5  # linear; convolution; BatchNorm

    def test_train_and_eval_reach_the_parts(self, toy):
        method = composed(toy, "kd+fitnet").eval()
        assert not method.parts[1].regressor[1].training


class TestParameters:
    @pytest.mark.parametrize(
        ("name", "alpha"), [("kd", 0.9), ("kd+sp", 0.9), ("fitnet+kd", 1.0), ("sp+fitnet+kd", 1.0)]
    )
    def test_default_alpha_of_kd(self, name, alpha):
        assert methods.resolve(MethodRef(name=name))["kd"].alpha == alpha

    def test_given_parameters_replace_those_defaults(self):
        ref = MethodRef(name="fitnet+kd", params={"kd": {"alpha": 0.5}, "fitnet": {"hint": 1}})
        assert methods.params(ref) == {
            "fitnet": {"beta": 100.0, "hint": 1, "variant": "code", "pretrain_epochs": 0.125},
            "kd": {"alpha": 0.5, "tau": 4.0},  # the cross-entropy is fitnet's
        }

    @pytest.mark.parametrize(
        ("name", "params", "message"),
        [
            (
                "sp+kdd",
                {},
                r"^unknown method 'kdd' at grid\.method\[1\]\. Did you mean 'kd'\? Known: ab, at, ",
            ),
            ("kd+", {}, r"^unknown method '' at grid\.method\[1\]\. Known: ab, "),
            ("kd+sp+kd", {}, r"^grid\.method\[1\] must name each method once, but got 'kd\+sp\+kd'\.$"),
            (
                "sp+kd",
                {"kd": {"gamma": 0.5}},
                r"^kd\.gamma has no effect in sp\+kd, whose cross-entropy is the first method's, but got 0\.5\.$",
            ),
            ("fitnet+kd", {"alpha": 1.0}, r"^unknown part 'alpha' at fitnet\+kd\. Known: fitnet, kd\.$"),
            ("fitnet+kd", {"sp": {"beta": 1.0}}, r"^unknown part 'sp' at fitnet\+kd\. Known: fitnet, kd\.$"),
            (
                "fitnet+kd",
                {"fitnets": {"beta": 1.0}},
                r"^unknown part 'fitnets' at fitnet\+kd\. Did you mean 'fitnet'\? Known: fitnet, kd\.$",
            ),
            (
                "fitnet+kd",
                {"kd": 1.0},
                r"^fitnet\+kd: kd must be a table of that method's parameters, but got 1\.0\.$",
            ),
            ("fitnet+kd", {"kd": {"taw": 1.0}}, r"^unknown key 'taw' at kd\.taw\. Did you mean 'tau'\?"),
            ("fitnet+kd", {"fitnet": {"hint": 0}}, r"^fitnet\.hint should be greater than or equal to 1, but got 0\.$"),
        ],
    )
    def test_bad_references(self, name, params, message):
        with pytest.raises(ConfigError, match=message):
            methods.resolve(MethodRef(name=name, params=params), "grid.method[1]")
