import math

import pytest
import torch
import torch.nn.functional as F

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.ipwd import IPWD, IPWDPlugin, ipw_weights, standardised


def identity_head(method):
    """Make the CLS head of a method or plug-in the identity, so that the pooled features are its logits."""
    if (head := method.weights.head) is not None:
        torch.nn.init.eye_(head.weight)
        torch.nn.init.zeros_(head.bias)
    return method


def ipwd(toy, epochs=240, **params):
    return identity_head(toy.method("ipwd", params, toy.setting(d_s=10, epochs=epochs)))


def terms_of(toy, golden, method, epoch=1, rows=slice(None)):
    student = toy.outputs(golden.zs[rows], golden.zc[rows])
    return method.loss(toy.batch(golden.y[rows], epoch), student, toy.outputs(golden.zt[rows]))


def std(values, correction=1):
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - correction))


def per_sample(z, correction=1):
    return torch.tensor([[v / std(row, correction) for v in row] for row in z.tolist()], dtype=torch.float64)


def whole_batch(z, correction=1):
    return z / std(z.flatten().tolist(), correction)


class Expected:
    """What the terms must be, from H of both heads."""

    def __init__(self, golden, slow):
        self.golden, self.slow = golden, slow

    def weights(self, z_kd, z_cls, floor=1e-7):
        """1 + H_kd / (H_cls + floor) of logits that are normalised already."""
        h_kd, h_cls = (self.slow.cross_entropies(z, self.golden.y) for z in (z_kd, z_cls))
        return [1 + k / (c + floor) for k, c in zip(h_kd, h_cls, strict=True)]

    def default_weights(self):
        return self.weights(per_sample(self.golden.zs), per_sample(self.golden.zc))

    def term(self, weights, alpha=5.0, tau=10.0):
        """alpha mean(w tau^2 KL)."""
        kls = self.slow.kls(self.golden.zs, self.golden.zt, tau)
        return alpha * self.slow.mean([w * kl for w, kl in zip(weights, kls, strict=True)])


@pytest.fixture
def expected(golden, slow):
    return Expected(golden, slow)


def entropies(z, y):
    return F.cross_entropy(z, y, reduction="none")


class TestWeights:
    @pytest.mark.parametrize(
        ("normalise", "golden_weights"),
        [
            (
                lambda z: standardised(z, 1),
                [3.0614524, 3.2092393, 2.1076956, 3.2444769, 1.2616081, 2.0286598, 2.1201504, 1.606224],
            ),
            (
                lambda z: standardised(z, 0),
                [3.1229814, 3.2955215, 2.1144964, 3.3381614, 1.2435742, 2.028687, 2.1275552, 1.5907603],
            ),
            (
                lambda z: z,
                [3.1557818, 4.7918142, 2.3724917, 6.9732539, 1.0680958, 1.5949879, 1.7550286, 1.3016604],
            ),
        ],
        ids=["correction 1", "correction 0", "no normalisation"],
    )
    def test_golden_values(self, golden, normalise, golden_weights):
        h_kd, h_cls = (entropies(normalise(z), golden.y) for z in (golden.zs, golden.zc))
        assert ipw_weights(h_kd, h_cls, floor=0.0).tolist() == pytest.approx(golden_weights, rel=1e-6)

    def test_golden_term(self, toy, golden):
        method = ipwd(toy, alpha=1.0, floor=0.0)
        assert terms_of(toy, golden, method)["ipwd"].item() == pytest.approx(16.209441, rel=1e-6)

    def test_by_hand(self):
        h_kd, h_cls = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.5, 3.0])
        assert ipw_weights(h_kd, h_cls, floor=0.0).tolist() == [2.0, 5.0, 1.0]
        assert ipw_weights(h_kd, h_cls, floor=0.5).tolist() == pytest.approx([1 + 1 / 1.5, 3.0, 1.0])

    def test_inverse_propensity(self, golden):
        # P(machine) = H_cls / (H_cls + H_kd) = sigmoid(log(H_cls / H_kd)).
        h_kd, h_cls = entropies(golden.zs, golden.y), entropies(golden.zc, golden.y)
        torch.testing.assert_close(1 / ipw_weights(h_kd, h_cls, floor=0.0), torch.sigmoid(torch.log(h_cls / h_kd)))

    def test_above_one(self, golden):
        h_kd, h_cls = (entropies(standardised(z), golden.y) for z in (golden.zs, golden.zc))
        assert (ipw_weights(h_kd, h_cls) > 1).all()

    def test_equal_heads_have_weight_two(self, golden):
        h = entropies(golden.zs, golden.y)
        torch.testing.assert_close(ipw_weights(h, h, floor=0.0), torch.full_like(h, 2.0))


class TestStandardised:
    @pytest.mark.parametrize("correction", [0, 1])
    def test_every_sample_has_unit_deviation(self, golden, correction):
        z = standardised(golden.zt, correction)
        assert [std(row, correction) for row in z.tolist()] == pytest.approx([1.0] * 8)

    def test_the_scale_of_a_sample_does_not_matter(self, golden):
        scales = torch.linspace(0.1, 9, 8, dtype=torch.float64)[:, None]
        torch.testing.assert_close(standardised(scales * golden.zs), standardised(golden.zs))

    # Unit deviation puts the true class at most (K-1)/sqrt(K) above or below the others' common value, a gap of
    # sqrt(K): H is log(1 + (K-1) exp(-+ sqrt(K))).
    @pytest.mark.parametrize(("k", "low", "high"), [(10, 0.3229, 5.3595), (100, 0.004485, 14.5952)])
    def test_bounds_of_the_cross_entropy(self, k, low, high):
        best = F.one_hot(torch.tensor([0]), k).double()
        y = torch.tensor([0])
        assert entropies(standardised(best), y).item() == pytest.approx(low, rel=1e-3)
        assert entropies(standardised(-best), y).item() == pytest.approx(high, rel=1e-3)
        torch.manual_seed(0)
        z = 50 * torch.randn(1000, k, dtype=torch.float64) ** 3
        h = entropies(standardised(z), torch.randint(k, (1000,)))
        assert low * 0.999 < h.min() <= h.max() < high * 1.001

    @pytest.mark.parametrize(("k", "low", "high"), [(10, 1 + 0.3229 / 5.3595, 17.6), (100, 1 + 3e-4, 3.3e3)])
    def test_bounds_of_the_weights(self, k, low, high):
        best, y = F.one_hot(torch.tensor([0]), k).double(), torch.tensor([0])
        smallest, largest = (entropies(standardised(z), y) for z in (best, -best))
        assert ipw_weights(largest, smallest).item() == pytest.approx(high, rel=2e-2)
        assert ipw_weights(smallest, largest).item() == pytest.approx(low, rel=1e-4)


class TestDefaults:
    def test_terms_equal_slow_loops(self, toy, golden, slow, expected):
        terms = terms_of(toy, golden, ipwd(toy))
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(
            {
                "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
                "cls": slow.mean(slow.cross_entropies(golden.zc, golden.y)),
                "ipwd": expected.term(expected.default_weights()),
            }
        )

    def test_cls_logits_are_linear_in_the_pooled_features(self, toy, golden, slow):
        method = toy.method("ipwd", {}, toy.setting(d_s=16))
        z_c = golden.vs @ method.weights.head.weight.T + method.weights.head.bias
        terms = method.loss(toy.batch(golden.y), toy.outputs(golden.zs, golden.vs), toy.outputs(golden.zt))
        assert terms["cls"].item() == pytest.approx(slow.mean(slow.cross_entropies(z_c, golden.y)))

    def test_equal_weights_are_kd(self, toy, golden, slow):
        # Heads that agree have w = 2 for every sample, so the term is 2 alpha KL.
        method = ipwd(toy, floor=0.0)
        terms = terms_of(toy, golden._replace(zc=golden.zs), method)
        assert terms["ipwd"].item() == pytest.approx(2 * 5 * slow.mean(slow.kls(golden.zs, golden.zt, 10.0)))

    def test_zero_for_equal_logits(self, toy, golden):
        assert terms_of(toy, golden._replace(zt=golden.zs), ipwd(toy))["ipwd"].item() == 0

    def test_prediction_is_the_students(self, toy, golden):
        assert ipwd(toy).predict(toy.outputs(golden.zs, golden.zc)) is golden.zs

    def test_alpha_and_tau(self, toy, golden, expected):
        term = terms_of(toy, golden, ipwd(toy, alpha=2.5, tau=2.0))["ipwd"]
        assert term.item() == pytest.approx(expected.term(expected.default_weights(), alpha=2.5, tau=2.0))


class TestGradients:
    def gradients(self, toy, golden, **params):
        """{term: gradients to logits, pooled features and CLS head; None where there is none}."""
        method = ipwd(toy, **params)
        logits, pooled = golden.zs.clone().requires_grad_(), golden.zc.clone().requires_grad_()
        terms = method.loss(toy.batch(golden.y), toy.outputs(logits, pooled), toy.outputs(golden.zt))
        targets = {"logits": logits, "pooled": pooled, "head": method.weights.head.weight}
        return {
            name: dict(zip(targets, torch.autograd.grad(
                term, list(targets.values()), retain_graph=True, allow_unused=True), strict=True))
            for name, term in terms.items()
        }  # fmt: skip

    def reached(self, toy, golden, **params):
        gradients = self.gradients(toy, golden, **params)
        return {term: {key for key, g in by.items() if g is not None} for term, by in gradients.items()}

    def test_reading_a_trains_the_backbone_by_the_main_head_alone(self, toy, golden):
        assert self.reached(toy, golden) == {"ce": {"logits"}, "cls": {"head"}, "ipwd": {"logits"}}

    def test_reading_b_shares_the_backbone(self, toy, golden):
        reached = self.reached(toy, golden, joint=True)
        assert reached == {"ce": {"logits"}, "cls": {"head", "pooled"}, "ipwd": {"logits"}}

    def test_reading_c_has_no_cross_entropy_on_the_main_head(self, toy, golden):
        reached = self.reached(toy, golden, joint=True, main_ce=False)
        assert reached == {"cls": {"head", "pooled"}, "ipwd": {"logits"}}

    def test_readings_give_the_same_numbers(self, toy, golden):
        a, b, c = (
            terms_of(toy, golden, ipwd(toy, **params))
            for params in ({}, {"joint": True}, {"joint": True, "main_ce": False})
        )
        assert a == b
        assert c == {"cls": a["cls"], "ipwd": a["ipwd"]}

    @pytest.mark.parametrize("params", [{}, {"joint": True, "cls_head": False}, {"cls_head": True}])
    def test_a_label_must_train_the_student(self, toy, params):
        message = r"^ipwd without main_ce, cls_head and joint must be true: else no label trains the student, but got"
        with pytest.raises(ConfigError, match=message):
            ipwd(toy, main_ce=False, **params)

    def test_weights_are_constants(self, toy, golden):
        # With constant w the gradient of the term is alpha w_b tau (p_s - p_t) / B.
        gradient = self.gradients(toy, golden)["ipwd"]["logits"]
        w = ipw_weights(*(entropies(standardised(z), golden.y) for z in (golden.zs, golden.zc)))
        difference = (golden.zs / 10).softmax(1) - (golden.zt / 10).softmax(1)
        torch.testing.assert_close(gradient, 5 * w[:, None] * 10 * difference / 8)

    def test_without_detach_the_gradient_is_that_of_the_whole_term(self, toy, golden):
        method = ipwd(toy, detach=False, joint=True)

        def term(logits, pooled):
            return method.loss(toy.batch(golden.y), toy.outputs(logits, pooled), toy.outputs(golden.zt))["ipwd"]

        inputs = (golden.zs.clone().requires_grad_(), golden.zc.clone().requires_grad_())
        assert torch.autograd.gradcheck(term, inputs)  # finite differences
        assert self.reached(toy, golden, detach=False)["ipwd"] == {"logits", "head"}
        assert self.reached(toy, golden, detach=False, joint=True)["ipwd"] == {"logits", "head", "pooled"}


class TestAblationsAndControl:
    def test_without_cls_head_the_teacher_is_the_reference(self, toy, golden, expected):
        method = ipwd(toy, cls_head=False)
        terms = terms_of(toy, golden, method)
        weights = expected.weights(per_sample(golden.zs), per_sample(golden.zt))
        assert set(terms) == {"ce", "ipwd"}
        assert terms["ipwd"].item() == pytest.approx(expected.term(weights))
        assert list(method.parameters()) == []
        assert method.param_groups() == []

    @pytest.mark.parametrize("correction", [0, 1])
    @pytest.mark.parametrize(("norm", "normalise"), [("sample", per_sample), ("batch", whole_batch)])
    def test_normalisation(self, toy, golden, expected, norm, normalise, correction):
        weights = expected.weights(normalise(golden.zs, correction), normalise(golden.zc, correction))
        term = terms_of(toy, golden, ipwd(toy, norm=norm, correction=correction))["ipwd"]
        assert term.item() == pytest.approx(expected.term(weights))

    def test_no_normalisation(self, toy, golden, expected):
        term = terms_of(toy, golden, ipwd(toy, norm="none"))["ipwd"]
        assert term.item() == pytest.approx(expected.term(expected.weights(golden.zs, golden.zc)))

    def test_neither_cls_head_nor_normalisation(self, toy, golden, expected):
        term = terms_of(toy, golden, ipwd(toy, cls_head=False, norm="none"))["ipwd"]
        assert term.item() == pytest.approx(expected.term(expected.weights(golden.zs, golden.zt)))

    @pytest.mark.parametrize("correction", [0, 1])
    def test_running_normalisation(self, toy, golden, expected, correction):
        # The first batch sets sigma, each later one moves it by a tenth.
        method = ipwd(toy, norm="running", correction=correction)
        first, second, third = (
            terms_of(toy, golden._replace(zs=a * golden.zs, zc=b * golden.zc), method)["ipwd"].item()
            for a, b in ((1, 1), (3, 1), (1, 1))
        )
        sigma_s, sigma_c = (std(z.flatten().tolist(), correction) for z in (golden.zs, golden.zc))
        assert first == pytest.approx(expected.term(expected.weights(golden.zs / sigma_s, golden.zc / sigma_c)))
        sigma_s = 0.9 * sigma_s + 0.1 * 3 * sigma_s
        wide = Expected(golden._replace(zs=3 * golden.zs), expected.slow)
        assert second == pytest.approx(wide.term(wide.weights(3 * golden.zs / sigma_s, golden.zc / sigma_c)))
        sigma_s = 0.9 * sigma_s + 0.1 * std(golden.zs.flatten().tolist(), correction)
        assert third == pytest.approx(expected.term(expected.weights(golden.zs / sigma_s, golden.zc / sigma_c)))

    def test_running_deviations_are_part_of_the_state(self, toy, golden):
        method, fresh = ipwd(toy, norm="running"), ipwd(toy, norm="running")
        terms_of(toy, golden._replace(zs=3 * golden.zs), method)
        fresh.load_state_dict(method.state_dict())
        assert terms_of(toy, golden, fresh) == terms_of(toy, golden, method)

    def test_matched_control_has_the_mean_weight_for_every_sample(self, toy, golden, slow, expected):
        weights = expected.default_weights()
        term = terms_of(toy, golden, ipwd(toy, weights="batch_mean"))["ipwd"]
        kl = slow.mean(slow.kls(golden.zs, golden.zt, 10.0))
        assert term.item() == pytest.approx(5 * slow.mean(weights) * kl)


class TestDetails:
    def test_floor(self, toy, golden, expected):
        weights = expected.weights(per_sample(golden.zs), per_sample(golden.zc), floor=0.5)
        assert terms_of(toy, golden, ipwd(toy, floor=0.5))["ipwd"].item() == pytest.approx(expected.term(weights))

    def test_floor_keeps_certain_samples_finite(self, toy, golden):
        # Without normalisation the CLS head's H of such logits is 0 in float64.
        certain = 1e6 * F.one_hot(golden.y, 10).double()
        term = terms_of(toy, golden._replace(zc=certain), ipwd(toy, norm="none"))["ipwd"]
        assert torch.isfinite(term)

    def test_w_max(self, toy, golden, expected):
        weights = expected.default_weights()
        assert sum(w > 2.05 for w in weights) == 5  # of eight, so that the cap matters for some
        term = terms_of(toy, golden, ipwd(toy, w_max=2.05))["ipwd"]
        assert term.item() == pytest.approx(expected.term([min(w, 2.05) for w in weights]))

    @pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
    def test_power(self, toy, golden, expected, power):
        weights = [w**power for w in expected.default_weights()]
        assert terms_of(toy, golden, ipwd(toy, power=power))["ipwd"].item() == pytest.approx(expected.term(weights))

    def test_the_cap_is_of_the_final_weight(self, toy, golden, expected):
        weights = [min(w**2, 5.0) for w in expected.default_weights()]
        assert terms_of(toy, golden, ipwd(toy, power=2.0, w_max=5.0))["ipwd"].item() == pytest.approx(
            expected.term(weights)
        )

    def test_unit_mean(self, toy, golden, slow, expected):
        weights = expected.default_weights()
        term = terms_of(toy, golden, ipwd(toy, unit_mean=True))["ipwd"]
        assert term.item() == pytest.approx(expected.term([w / slow.mean(weights) for w in weights]))

    def test_unit_mean_of_the_control_is_plain_kd(self, toy, golden, expected):
        term = terms_of(toy, golden, ipwd(toy, unit_mean=True, weights="batch_mean"))["ipwd"]
        assert term.item() == pytest.approx(expected.term([1.0] * 8))

    def test_tau_h(self, toy, golden, expected):
        weights = expected.weights(per_sample(golden.zs) / 2.5, per_sample(golden.zc) / 2.5)
        assert terms_of(toy, golden, ipwd(toy, tau_h=2.5))["ipwd"].item() == pytest.approx(expected.term(weights))

    @pytest.mark.parametrize(
        ("start", "epochs", "first"), [(0, 240, 1), (2, 240, 3), (0.75, 300, 226), (0.75, 4, 4), (300, 240, None)]
    )
    def test_weights_are_one_until_the_start(self, toy, golden, expected, start, epochs, first):
        method = ipwd(toy, epochs, start=start)
        ones, weighted = expected.term([1.0] * 8), expected.term(expected.default_weights())
        for epoch in {1, 2, 3, 4, 225, 226, epochs}:
            term = terms_of(toy, golden, method, epoch)["ipwd"].item()
            assert term == pytest.approx(weighted if first is not None and epoch >= first else ones)

    def test_cls_head_still_trains_before_the_start(self, toy, golden):
        assert terms_of(toy, golden, ipwd(toy, start=2))["cls"].requires_grad

    def test_teacher_bn(self, toy):
        assert not ipwd(toy).teacher_trains
        assert ipwd(toy, teacher_bn="train").teacher_trains

    @pytest.mark.parametrize(
        ("params", "settings"),
        [
            ({}, {"lr_scale": 1.0}),
            ({"cls_lr_scale": 10.0}, {"lr_scale": 10.0}),
            ({"cls_weight_decay": 0.0}, {"lr_scale": 1.0, "weight_decay": 0.0}),
        ],
    )
    def test_optimizer_group_of_the_cls_head(self, toy, params, settings):
        method = ipwd(toy, **params)
        (group,) = method.param_groups()
        assert set(group.pop("params")) == set(method.weights.head.parameters())
        assert group == settings

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"correction": 2}, r"^ipwd\.correction should be 0 or 1, but got 2\.$"),
            ({"norm": "layer"}, r"^ipwd\.norm should be 'sample', 'batch', 'running' or 'none', but got 'layer'\.$"),
            ({"w_max": 1.0}, r"^ipwd\.w_max should be greater than 1, but got 1\.0\.$"),
            ({"ema": 1.0}, r"^ipwd\.ema should be less than 1, but got 1\.0\.$"),
            (
                {"start": 1.5},
                r"^ipwd\.start must be a whole number of epochs or a fraction of all epochs below 1, but got 1\.5\.$",
            ),
            ({"start_epoch": 1}, r"^unknown key 'start_epoch' at ipwd\.start_epoch\. Did you mean 'start'\? Known: "),
            ({"tau_h": 0}, r"^ipwd\.tau_h should be greater than 0, but got 0\.$"),
            ({"cls_lr_scale": 0}, r"^ipwd\.cls_lr_scale should be greater than 0, but got 0\.$"),
            ({"teacher_bn": True}, r"^ipwd\.teacher_bn should be 'eval' or 'train', but got True\.$"),
        ],
    )
    def test_bad_parameters(self, toy, params, message):
        with pytest.raises(ConfigError, match=message):
            ipwd(toy, **params)


class TestAveragedHeads:
    """H is taken of heads whose weights are averages; the terms' own logits stay those of the present heads."""

    def moved(self, toy, golden, **params):
        """A method with averaged heads after both heads have moved; weights before and after."""
        setting = toy.setting(d_s=10)
        method = toy.method("ipwd", {"ema": 0.75, **params}, setting)
        heads = [setting.student.head] + ([method.weights.head] if method.weights.head is not None else [])
        before = [(head.weight.detach().clone(), head.bias.detach().clone()) for head in heads]
        for head in heads:
            torch.nn.init.eye_(head.weight)
            torch.nn.init.ones_(head.bias)
        return method, before

    @staticmethod
    def averaged(pooled, before, share):
        """Logits of a head that has kept `share` of what it was before it became the identity plus one."""
        weight, bias = before
        weight = share * weight + (1 - share) * torch.eye(10, dtype=torch.float64)
        return pooled @ weight.T + share * bias + (1 - share)

    def test_weights_are_of_the_averaged_heads(self, toy, golden, expected):
        method, before = self.moved(toy, golden)
        for share in (0.75, 0.75**2):
            logits = (per_sample(self.averaged(golden.zc, b, share)) for b in before)
            term = terms_of(toy, golden, method)["ipwd"]
            assert term.item() == pytest.approx(expected.term(expected.weights(*logits)))

    def test_without_cls_head_only_the_main_head_is_averaged(self, toy, golden, expected):
        method, before = self.moved(toy, golden, cls_head=False)
        weights = expected.weights(per_sample(self.averaged(golden.zc, before[0], 0.75)), per_sample(golden.zt))
        assert terms_of(toy, golden, method)["ipwd"].item() == pytest.approx(expected.term(weights))

    def test_other_terms_use_the_present_heads(self, toy, golden, slow):
        method, _ = self.moved(toy, golden)
        terms = terms_of(toy, golden, method)
        assert terms["ce"].item() == pytest.approx(slow.mean(slow.cross_entropies(golden.zs, golden.y)))
        assert terms["cls"].item() == pytest.approx(slow.mean(slow.cross_entropies(golden.zc + 1, golden.y)))

    def test_averages_are_state_and_not_trained(self, toy, golden):
        method, _ = self.moved(toy, golden)
        terms_of(toy, golden, method)
        trained = {parameter for group in method.param_groups() for parameter in group["params"]}
        assert trained == {p for p in method.parameters() if p.requires_grad} == set(method.weights.head.parameters())
        fresh, _ = self.moved(toy, golden)
        fresh.load_state_dict(method.state_dict())
        assert terms_of(toy, golden, fresh) == terms_of(toy, golden, method)

    def test_no_averages_without_ema(self, toy):
        assert set(ipwd(toy).state_dict()) == {"weights.head.weight", "weights.head.bias", "weights.sigmas"}

    def test_averages_follow_the_heads_before_the_start_too(self, toy, golden, expected):
        # Otherwise H would be that of the initial heads when the weights begin to count.
        method, before = self.moved(toy, golden, start=1)
        for epoch in (1, 1, 2):
            term = terms_of(toy, golden, method, epoch)["ipwd"]
        logits = (per_sample(self.averaged(golden.zc, b, 0.75**3)) for b in before)
        assert term.item() == pytest.approx(expected.term(expected.weights(*logits)))


class Hosted:
    """A host alone and with the plug-in, in the same state."""

    def __init__(self, toy, golden, name, epochs=4, **params):
        self.toy, self.golden, self.rows = toy, golden, {"ps_kd": 1, "sskd": 4}[name]
        setting = toy.setting(d_s=10, epochs=epochs)
        self.alone = toy.method(name, {}, setting)
        self.together = toy.method(f"{name}+ipwd", {"ipwd": params}, setting)
        self.host, self.plugin = self.together.parts
        identity_head(self.plugin)
        for method in (self.alone, self.together):
            method.allocate(torch.arange(8), golden.y)
        self.host.load_state_dict(self.alone.state_dict())
        if name == "ps_kd":  # whose past predictions are then the teacher's
            for method in (self.alone, self.together):
                method.loss(toy.batch(golden.y, 1), toy.outputs(golden.zt, golden.zc), None)

    def views(self, values):
        """Outputs for the upright images and, where the host turns images, three more for each."""
        return torch.cat([values] + [(values + k).flip(1) for k in range(1, self.rows)])

    def terms(self, method, epoch, zs=None, zc=None):
        zs, zc = self.views(self.golden.zs if zs is None else zs), self.views(self.golden.zc if zc is None else zc)
        teacher = self.toy.outputs(self.views(self.golden.zt), self.views(self.golden.vt))
        return method.loss(self.toy.batch(self.golden.y, epoch), self.toy.outputs(zs, zc), teacher)


def values(terms):
    return {name: term.item() for name, term in terms.items()}


class TestPlugin:
    """In epoch 4 of 4, where PS-KD's past predictions have weight 0.8 and the plug-in's weights count."""

    # The host's term that is weighted, its weight and temperature.
    HOSTS = pytest.mark.parametrize(
        ("name", "term", "alpha", "tau"), [("ps_kd", "past", 0.8, 1.0), ("sskd", "upright", 0.9, 4.0)]
    )

    @HOSTS
    def test_weights_the_hosts_distillation_of_logits(self, toy, golden, expected, name, term, alpha, tau):
        hosted = Hosted(toy, golden, name)
        found = hosted.terms(hosted.together, 4)[term].item()
        assert found == pytest.approx(expected.term(expected.default_weights(), alpha, tau))

    @HOSTS
    def test_leaves_the_hosts_other_terms_and_adds_the_cls_head(self, toy, golden, slow, name, term, alpha, tau):
        hosted = Hosted(toy, golden, name)
        alone, together = (values(hosted.terms(method, 4)) for method in (hosted.alone, hosted.together))
        assert together.pop("cls") == pytest.approx(slow.mean(slow.cross_entropies(golden.zc, golden.y)))
        assert together.pop(term) != pytest.approx(alone.pop(term), rel=1e-2)
        assert together == alone

    @HOSTS
    def test_weights_of_one_give_the_hosts_gradient(self, toy, golden, name, term, alpha, tau):
        hosted = Hosted(toy, golden, name, start=4)
        gradients = []
        for method in (hosted.alone, hosted.together):
            zs, zc = golden.zs.clone().requires_grad_(), golden.zc.clone().requires_grad_()
            total = sum(hosted.terms(method, 4, zs, zc).values())
            gradients.append(torch.autograd.grad(total, (zs, zc), allow_unused=True, materialize_grads=True))
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-15)

    @HOSTS
    def test_power_zero_is_weights_of_one(self, toy, golden, expected, name, term, alpha, tau):
        hosted = Hosted(toy, golden, name, power=0.0)
        found = hosted.terms(hosted.together, 4)[term].item()
        assert found == pytest.approx(expected.term([1.0] * 8, alpha, tau))

    @HOSTS
    def test_matched_control(self, toy, golden, slow, expected, name, term, alpha, tau):
        hosted = Hosted(toy, golden, name, weights="batch_mean")
        mean = slow.mean(expected.default_weights())
        found = hosted.terms(hosted.together, 4)[term].item()
        assert found == pytest.approx(expected.term([mean] * 8, alpha, tau))

    @HOSTS
    def test_trains_the_cls_head_beside_the_hosts_modules(self, toy, golden, name, term, alpha, tau):
        hosted = Hosted(toy, golden, name, cls_lr_scale=10.0)
        *others, group = hosted.together.param_groups()
        assert set(group.pop("params")) == set(hosted.plugin.weights.head.parameters())
        assert group == {"lr_scale": 10.0}
        assert [set(other["params"]) for other in others] == [set(g["params"]) for g in hosted.host.param_groups()]

    def test_past_predictions_are_read_before_they_are_stored(self, toy, golden, expected):
        hosted = Hosted(toy, golden, "ps_kd")
        torch.testing.assert_close(hosted.host.past, golden.zt.softmax(1))
        found = [hosted.terms(hosted.together, 4)["past"].item() for _ in range(2)]
        torch.testing.assert_close(hosted.host.past, golden.zs.softmax(1))
        assert found == pytest.approx([expected.term(expected.default_weights(), 0.8, 1.0), 0.0])

    def test_weights_are_those_of_the_upright_images(self, toy, golden):
        # Other features of the turned images change neither the weights nor the CLS head's loss.
        hosted = Hosted(toy, golden, "sskd")
        before = hosted.terms(hosted.together, 4)
        hosted.views = lambda z: torch.cat([z, -2 * z, z.flip(0), 3 + z])
        after = hosted.terms(hosted.together, 4)
        assert [after[key].item() for key in ("ce", "upright", "cls")] == [
            before[key].item() for key in ("ce", "upright", "cls")
        ]
        assert after["turned"] != before["turned"]

    def test_turned_images_by_their_own_weights(self, toy, golden, slow):
        hosted = Hosted(toy, golden, "sskd", turned=True)
        hosted.views = lambda z: torch.cat([z, -2 * z, z.flip(0), 3 + z])
        terms = hosted.terms(hosted.together, 4)
        zs, zt, zc = (hosted.views(z) for z in (golden.zs, golden.zt, golden.zc))
        y = golden.y.repeat(4)
        h_kd, h_cls = (slow.cross_entropies(per_sample(z), y) for z in (zs, zc))
        kls = slow.kls(zs, zt, 4.0)
        weighted = [(1 + kd / (cls + 1e-7)) * kl for kd, cls, kl in zip(h_kd, h_cls, kls, strict=True)]
        assert terms["upright"].item() == pytest.approx(0.9 * slow.mean(weighted[:8]))
        assert terms["turned"].item() == pytest.approx(2.7 * slow.mean(weighted[8:]))  # all of them count
        assert terms["cls"].item() == pytest.approx(slow.mean(slow.cross_entropies(golden.zc, golden.y)))

    def test_reference_of_the_teacher(self, toy, golden, expected):
        hosted = Hosted(toy, golden, "sskd", cls_head=False)
        terms = hosted.terms(hosted.together, 4)
        weights = expected.weights(per_sample(golden.zs), per_sample(golden.zt))
        assert "cls" not in terms
        assert terms["upright"].item() == pytest.approx(expected.term(weights, 0.9, 4.0))

    def test_without_teacher_the_cls_head_is_the_only_reference(self, toy):
        without = toy.setting()._replace(teacher=None, teacher_shapes=None)
        assert list(toy.method("ps_kd+ipwd", {}, without).parameters())
        message = r"^ipwd\.cls_head must be true where there is no teacher, but got False\.$"
        with pytest.raises(ConfigError, match=message):
            toy.method("ps_kd+ipwd", {"ipwd": {"cls_head": False}}, without)

    @pytest.mark.parametrize(
        ("name", "params", "first"),
        [("ps_kd", {}, 226), ("ps_kd", {"start": 0}, 1), ("sskd", {}, 1)],
        ids=["late", "early", "from the beginning"],
    )
    def test_first_epoch_with_weights_of_300(self, toy, golden, name, params, first):
        hosted = Hosted(toy, golden, name, epochs=300, **params)
        student = toy.outputs(golden.zs, golden.zc)
        weighted = [
            epoch
            for epoch in range(1, 301)
            if (hosted.plugin.weights(toy.batch(golden.y, epoch), student, None)[0] != 1).all()
        ]
        assert weighted == list(range(first, 301))

    def test_state_of_the_cls_head_goes_on(self, toy, golden):
        old, new = (Hosted(toy, golden, "ps_kd", norm="running", ema=0.5) for _ in range(2))
        torch.nn.init.normal_(old.plugin.weights.head.weight)
        old.terms(old.together, 3, 2 * golden.zs)
        new.together.load_state_dict(old.together.state_dict())
        assert values(new.terms(new.together, 4)) == values(old.terms(old.together, 4))

    @pytest.mark.parametrize("name", ["ps_kd", "sskd"])
    @pytest.mark.parametrize("key", ["alpha", "tau", "main_ce"])
    def test_has_no_parameters_of_the_distillation(self, name, key):
        known = ", ".join(sorted(IPWDPlugin.Config.model_fields))
        message = rf"^unknown key '{key}' at ipwd\.{key}\..* Known: {known}\.$"
        with pytest.raises(ConfigError, match=message):
            methods.resolve(MethodRef(name=f"{name}+ipwd", params={"ipwd": {key: 1.0}}))
        assert key in IPWD.Config.model_fields

    @pytest.mark.parametrize(("name", "teacher"), [("ps_kd+ipwd", set()), ("sskd+ipwd", {"logits", "pooled"})])
    def test_needs_what_the_host_needs(self, name, teacher):
        assert methods.needs(MethodRef(name=name)) == teacher

    @pytest.mark.parametrize("name", ["kd+ipwd", "ipwd+ps_kd", "ipwd+kd"])
    def test_beside_a_method_that_is_no_host_it_is_a_method(self, name):
        assert methods.classes(MethodRef(name=name))["ipwd"] is IPWD

    def test_beside_kd_it_is_a_plain_union(self, toy, golden, slow, expected):
        method = toy.method("kd+ipwd", {"ipwd": {"alpha": 2.0}}, toy.setting(d_s=10))
        identity_head(method.parts[1])
        assert values(terms_of(toy, golden, method)) == pytest.approx(
            {
                "ce": 0.1 * slow.mean(slow.cross_entropies(golden.zs, golden.y)),
                "kd": 0.9 * slow.mean(slow.kls(golden.zs, golden.zt, 4.0)),
                "cls": slow.mean(slow.cross_entropies(golden.zc, golden.y)),
                "ipwd": expected.term(expected.default_weights(), alpha=2.0),
            }
        )
