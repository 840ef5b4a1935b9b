import math

import pytest
import torch

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.cid import centres_of, class_relation_loss, context, nm_mse, weighted_sums

PARTS = ([0, 1, 2], [3, 4, 5], [6, 7])  # three batches of an epoch over the eight golden samples


def slow_nm_mse(a, b):
    ratios = [
        sum((p - q) ** 2 for p, q in zip(row_a, row_b, strict=True)) / sum(q * q for q in row_b)
        for row_a, row_b in zip(a.tolist(), b.tolist(), strict=True)
    ]
    return sum(ratios) / len(ratios)


def cosine(p, q):
    dot = sum(a * b for a, b in zip(p, q, strict=True))
    return dot / math.sqrt(sum(a * a for a in p) * sum(b * b for b in q))


def slow_class_relation(v_s, v_t, labels):
    v_s, v_t, labels = v_s.tolist(), v_t.tolist(), labels.tolist()
    classes = []
    for k in sorted(set(labels)):
        members = [i for i, label in enumerate(labels) if label == k]
        if len(members) < 2:
            continue
        squares = [(cosine(v_s[i], v_s[j]) - cosine(v_t[i], v_t[j])) ** 2 for i in members for j in members]
        classes.append(sum(squares) / len(members) ** 2)
    return sum(classes) / len(classes) if classes else 0.0


def slow_centres(slow, v, z, labels, tau=4.0, num_classes=10):
    """M_k = sum w_i v_i / sum w_i over the samples of class k, w_i = softmax(z_i / tau)[y_i]."""
    v, z, labels = v.tolist(), z.tolist(), labels.tolist()
    centres = [[0.0] * len(v[0]) for _ in range(num_classes)]
    for k in set(labels):
        members = [i for i, label in enumerate(labels) if label == k]
        w = [math.exp(slow.log_softmax(z[i], tau)[k]) for i in members]
        for d in range(len(v[0])):
            centres[k][d] = sum(wi * v[i][d] for wi, i in zip(w, members, strict=True)) / sum(w)
    return torch.tensor(centres, dtype=torch.float64)


def slow_context(slow, z, centres, tau=4.0):
    rows = []
    for row in z.tolist():
        p = [math.exp(value) for value in slow.log_softmax(row, tau)]
        columns = zip(*centres.tolist(), strict=True)
        rows.append([sum(a * b for a, b in zip(p, column, strict=True)) for column in columns])
    return torch.tensor(rows, dtype=torch.float64)


def cid(toy, epochs=6, num_classes=10, **params):
    return toy.method("cid", params, toy.setting(epochs=epochs, num_classes=num_classes))


def sides(toy, golden, rows=slice(None)):
    student = toy.outputs(golden.zs[rows], golden.vs[rows])
    teacher = toy.outputs(golden.zt[rows], golden.vt[rows])
    return student, teacher


def terms_of(toy, golden, method, epoch):
    return method.loss(toy.batch(golden.y, epoch), *sides(toy, golden))


def train_epoch(toy, golden, method, epoch):
    """An epoch over the golden samples in batches."""
    method.start_epoch(epoch)
    for rows in PARTS:
        method.loss(toy.batch(golden.y[rows], epoch), *sides(toy, golden, rows))


class TestSampleRepresentation:
    def test_golden_value(self, golden):
        assert nm_mse(golden.vs, golden.vt).item() == pytest.approx(2.0682088, rel=1e-7)

    def test_by_hand(self):
        # ||(1, -2)||^2 / ||(0, 2)||^2 = 5/4, and 0 for the second sample.
        a, b = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 4.0]])
        assert nm_mse(a, b).item() == 0.625

    def test_equals_a_slow_loop(self, golden):
        assert nm_mse(golden.vs, golden.vt).item() == pytest.approx(slow_nm_mse(golden.vs, golden.vt), rel=1e-12)

    def test_zero_for_equal_features(self, golden):
        assert nm_mse(golden.vt, golden.vt).item() == 0

    def test_each_samples_scale_cancels(self, golden):
        scales = torch.linspace(0.1, 9, 8, dtype=torch.float64)[:, None]
        scaled = nm_mse(scales * golden.vs, scales * golden.vt)
        torch.testing.assert_close(scaled, nm_mse(golden.vs, golden.vt))


class TestClassRepresentation:
    def test_golden_value(self, golden):
        value = class_relation_loss(golden.vs, golden.vt, golden.y)
        assert value.item() == pytest.approx(0.94767472, rel=1e-7)

    def test_pairs_by_hand(self):
        # Class 0: cosines 1 and 0, so 1^2 / 2; class 1: -1 and 0.6, so 1.6^2 / 2. The single sample does not count.
        v_s = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -3.0], [5.0, 5.0]])
        v_t = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 2.0]])
        value = class_relation_loss(v_s, v_t, torch.tensor([0, 0, 1, 1, 2]))
        assert value.item() == pytest.approx((1 / 2 + 1.6**2 / 2) / 2)

    @pytest.mark.parametrize(
        "labels", [[0, 1, 2, 3, 0, 1, 2, 3], [5, 5, 5, 1, 5, 1, 0, 2], [4] * 8, [9, 9, 1, 2, 3, 4, 5, 6]]
    )
    def test_equals_a_slow_loop(self, golden, labels):
        labels = torch.tensor(labels)
        expected = slow_class_relation(golden.vs, golden.vt, labels)
        assert class_relation_loss(golden.vs, golden.vt, labels).item() == pytest.approx(expected, rel=1e-6)

    def test_zero_for_equal_features(self, golden):
        assert class_relation_loss(golden.vs, golden.vs, golden.y).item() == 0

    def test_the_length_of_a_feature_does_not_matter(self, golden):
        scales = torch.linspace(0.1, 9, 8, dtype=torch.float64)[:, None]
        scaled = class_relation_loss(scales * golden.vs, golden.vt / scales, golden.y)
        torch.testing.assert_close(scaled, class_relation_loss(golden.vs, golden.vt, golden.y))

    def test_the_names_of_the_classes_do_not_matter(self, golden):
        renamed = class_relation_loss(golden.vs, golden.vt, 9 - golden.y)
        torch.testing.assert_close(renamed, class_relation_loss(golden.vs, golden.vt, golden.y))

    def test_zero_with_a_gradient_of_zero_where_no_class_has_two_samples(self, golden):
        v_s = golden.vs.clone().requires_grad_()
        value = class_relation_loss(v_s, golden.vt, torch.arange(8))
        value.backward()
        assert value.item() == 0
        assert v_s.grad.abs().max() == 0


class TestCentres:
    def test_golden_values(self, golden):
        centres = centres_of(*weighted_sums(golden.vs, golden.zt, golden.y, 4.0, 10))
        assert centres[0, :4].tolist() == pytest.approx([0.4024507, 0.6414336, 0.81926679, 0.91899695], rel=1e-6)
        assert centres[4:].abs().max() == 0
        j = context(golden.zs, centres, 4.0)[0, :4].tolist()
        assert j == pytest.approx([-0.12606223, -0.11396635, -0.091005737, -0.059369283], rel=1e-6)

    def test_by_hand(self):
        # softmax((ln 3, 0)) = (3/4, 1/4): class 0 has weights 3/4 and 1/4.
        z = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
        v = torch.tensor([[4.0, 0.0], [0.0, 8.0]])
        sums, weights = weighted_sums(v, z, torch.tensor([0, 0]), 1.0, 2)
        torch.testing.assert_close(sums, torch.tensor([[3.0, 2.0], [0.0, 0.0]]))
        torch.testing.assert_close(weights, torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(centres_of(sums, weights), torch.tensor([[3.0, 2.0], [0.0, 0.0]]))

    def test_the_context_of_a_certain_sample_is_its_centre(self, golden):
        centres = golden.vs[:5]
        z = torch.tensor([[0.0, 0.0, 5e3, 0.0, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(context(z, centres, 4.0), centres[2:3])

    def test_the_context_of_an_ignorant_sample_is_the_mean_of_the_centres(self, golden):
        # The mean, because the weights sum to 1: the paper's further 1/m is left out.
        j = context(torch.zeros(1, 5, dtype=torch.float64), golden.vs[:5], 4.0)
        torch.testing.assert_close(j, golden.vs[:5].mean(0, keepdim=True))

    def test_no_gradient_through_the_contexts_weights(self, golden):
        z = golden.zs.clone().requires_grad_()
        assert not context(z, golden.vs.new_ones(10, 16), 4.0).requires_grad


class TestSchedule:
    @pytest.mark.parametrize(
        ("epochs", "params", "expected"),
        [
            (240, {}, 20),
            (120, {}, 10),
            (6, {}, 1),  # 0.5 epochs, at least 1
            (240, {"init_epochs": 30}, 30),
            (240, {"init_epochs": 0.125}, 30),
            (240, {"init_epochs": 0}, 0),
            (240, {"inv": False}, 0),
            (240, {"inv": False, "init_epochs": 20}, 20),
        ],
    )
    def test_initial_epochs(self, toy, golden, epochs, params, expected):
        method = cid(toy, epochs, **params)
        for epoch in (1, expected, expected + 1):
            if epoch >= 1:
                assert ("ce" in terms_of(toy, golden, method, epoch)) == (epoch > expected)

    @pytest.mark.parametrize(
        ("epochs", "params", "expected"),
        [
            (240, {}, 20),
            (120, {}, 10),
            (6, {}, 1),
            (240, {"init_epochs": 30}, 30),
            (240, {"init_epochs": 0.125}, 30),
            (240, {"init_epochs": 0}, 0),
            (240, {"inv": False}, 0),
            (240, {"inv": False, "init_epochs": 20}, 0),  # the student's own classifier learns the teacher's logits
        ],
    )
    def test_epochs_whose_predictions_say_nothing(self, epochs, params, expected):
        assert methods.blind_epochs(MethodRef(name="cid", params=params), epochs) == expected

    def test_without_inv_what_predicts_learns_in_the_initial_epochs(self, toy, golden):
        method = cid(toy, inv=False, init_epochs=2)
        student, teacher = sides(toy, golden)
        student.logits.requires_grad_()
        sum(method.loss(toy.batch(golden.y, 1), student, teacher).values()).backward()
        assert student.logits.grad.abs().sum() > 0

    def test_no_cross_entropy_in_the_initial_epochs(self, toy, golden):
        method = cid(toy, epochs=6, init_epochs=2)
        names = [set(terms_of(toy, golden, method, epoch)) for epoch in (1, 2, 3, 6)]
        assert names == [{"kl", "sr", "cr"}] * 2 + [{"ce", "kl", "sr", "cr"}] * 2

    @pytest.mark.parametrize(("epochs", "init_epochs", "count"), [(1, None, 1), (6, 6, 6), (6, 9, 9)])
    def test_an_epoch_must_be_left(self, toy, epochs, init_epochs, count):
        message = rf"^cid needs an epoch after its {count} of init_epochs, but got epochs = {epochs}\.$"
        with pytest.raises(ConfigError, match=message):
            cid(toy, epochs, init_epochs=init_epochs)

    def test_centres_are_those_of_all_batches_of_the_last_epoch(self, toy, golden, slow):
        method = cid(toy)
        train_epoch(toy, golden, method, 1)
        assert method.centres.abs().max() == 0
        method.start_epoch(2)
        torch.testing.assert_close(method.centres, slow_centres(slow, golden.vs, golden.zt, golden.y))
        assert method.centres[4:].abs().max() == 0  # classes without samples

    def test_each_epoch_uses_the_centres_of_the_one_before(self, toy, golden, slow):
        method = cid(toy)
        later = golden._replace(vs=golden.vs.flip(1) + 1)
        train_epoch(toy, golden, method, 1)
        train_epoch(toy, later, method, 2)
        torch.testing.assert_close(method.centres, slow_centres(slow, golden.vs, golden.zt, golden.y))
        method.start_epoch(3)
        torch.testing.assert_close(method.centres, slow_centres(slow, later.vs, golden.zt, golden.y))

    def test_only_the_last_initial_epoch_counts(self, toy, golden, slow):
        method = cid(toy, init_epochs=3)
        later = golden._replace(vs=golden.vs.flip(1) + 1)
        for epoch, data in ((1, golden), (2, golden), (3, later)):
            train_epoch(toy, data, method, epoch)
            assert method.centres.abs().max() == 0
        method.start_epoch(4)
        torch.testing.assert_close(method.centres, slow_centres(slow, later.vs, golden.zt, golden.y))

    def test_without_initial_epochs_the_second_is_the_first_with_centres(self, toy, golden, slow):
        method = cid(toy, init_epochs=0, centre_momentum=0.5)
        train_epoch(toy, golden, method, 1)
        assert method.centres.abs().max() == 0
        method.start_epoch(2)
        torch.testing.assert_close(method.centres, slow_centres(slow, golden.vs, golden.zt, golden.y))

    def test_centre_momentum(self, toy, golden, slow):
        method = cid(toy, centre_momentum=0.25)
        later = golden._replace(vs=golden.vs.flip(1) + 1)
        train_epoch(toy, golden, method, 1)
        train_epoch(toy, later, method, 2)
        first, second = (slow_centres(slow, data.vs, golden.zt, golden.y) for data in (golden, later))
        torch.testing.assert_close(method.centres, first)
        method.start_epoch(3)
        torch.testing.assert_close(method.centres, 0.25 * first + 0.75 * second)

    def test_the_temperature_is_also_that_of_centres_and_context(self, toy, golden, slow):
        method = cid(toy, tau=2.0)
        train_epoch(toy, golden, method, 1)
        method.start_epoch(2)
        centres = slow_centres(slow, golden.vs, golden.zt, golden.y, tau=2.0)
        torch.testing.assert_close(method.centres, centres)
        joined = torch.cat([golden.vs, slow_context(slow, golden.zs, centres, tau=2.0)], 1)
        torch.testing.assert_close(method.predict(sides(toy, golden)[0]), method.classifier(joined))

    def test_a_fresh_instance_goes_on_from_the_saved_state(self, toy, golden, slow):
        method, fresh = cid(toy), cid(toy)
        train_epoch(toy, golden, method, 1)
        fresh.load_state_dict(method.state_dict())
        fresh.start_epoch(2)
        torch.testing.assert_close(fresh.centres, slow_centres(slow, golden.vs, golden.zt, golden.y))


class TestTerms:
    @pytest.mark.parametrize(
        ("params", "alpha", "beta", "tau"),
        [({}, 10.0, 1.0, 4.0), ({"alpha": 65.0, "beta": 0.5, "tau": 3.0}, 65.0, 0.5, 3.0)],
    )
    def test_equal_slow_loops(self, toy, golden, slow, params, alpha, beta, tau):
        method = cid(toy, **params)
        train_epoch(toy, golden, method, 1)
        method.start_epoch(2)
        terms = terms_of(toy, golden, method, 2)
        regressed = golden.vs @ method.regressors[0].weight.T + method.regressors[0].bias
        centres = slow_centres(slow, golden.vs, golden.zt, golden.y, tau)
        joined = torch.cat([golden.vs, slow_context(slow, golden.zs, centres, tau)], 1)
        logits = joined @ method.classifier.weight.T + method.classifier.bias
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(
            {
                "kl": slow.mean(slow.kls(golden.zs, golden.zt, tau)),
                "sr": alpha * slow_nm_mse(regressed, golden.vt),
                "cr": beta * slow_class_relation(golden.vs, golden.vt, golden.y),
                "ce": slow.mean(slow.cross_entropies(logits, golden.y)),
            }
        )

    def test_regressor_maps_to_the_teachers_width(self, toy):
        method = toy.method("cid", {}, toy.setting(d_s=8, d_t=24, num_classes=5))
        assert tuple(method.regressors[0].weight.shape) == (24, 8)
        assert tuple(method.classifier.weight.shape) == (5, 16)
        assert tuple(method.centres.shape) == (5, 8)

    def test_gradients_of_each_term(self, toy, golden):
        method = cid(toy)
        z_s, v_s = golden.zs.clone().requires_grad_(), golden.vs.clone().requires_grad_()
        train_epoch(toy, golden, method, 1)
        method.start_epoch(2)
        student, teacher = toy.outputs(z_s, v_s), toy.outputs(golden.zt, golden.vt)
        terms = method.loss(toy.batch(golden.y, 2), student, teacher)
        targets = {
            "logits": z_s, "pooled": v_s, "classifier": method.classifier.weight,
            "regressor": method.regressors[0].weight,
        }  # fmt: skip
        reached = {}
        for name, term in terms.items():
            gradients = torch.autograd.grad(term, list(targets.values()), retain_graph=True, allow_unused=True)
            reached[name] = {key for key, grad in zip(targets, gradients, strict=True) if grad is not None}
        assert reached == {
            "kl": {"logits"},
            "sr": {"pooled", "regressor"},
            "cr": {"pooled"},
            "ce": {"pooled", "classifier"},  # not the logits, which enter through the context
        }

    @pytest.mark.parametrize("params", [{}, {"centre_momentum": 0.5, "layers": [1]}, {"inv": False}])
    def test_what_a_file_of_the_student_must_hold_is_enough_to_predict(self, toy, golden, params):
        setting = toy.setting(epochs=6, maps_s=[(6, 4)], maps_t=[(6, 4)])
        method, fresh = (toy.method("cid", params, setting) for _ in range(2))
        method.start_epoch(1)
        student = toy.outputs(golden.zs, golden.vs + 1, stages=[golden.fs])
        teacher = toy.taught(method, golden.zt, golden.vt, stages=[golden.ft])
        method.loss(toy.batch(golden.y, 1), student, teacher)
        method.start_epoch(2)
        names = {"classifier.weight", "classifier.bias", "centres"} if params.get("inv", True) else set()
        assert set(method.predictor()) == names
        missing, unexpected = fresh.load_state_dict(method.predictor(), strict=False)
        assert not unexpected
        assert set(missing) == set(method.state_dict()) - names
        assert torch.equal(fresh.predict(sides(toy, golden)[0]), method.predict(sides(toy, golden)[0]))

    def test_the_centres_carry_no_gradient(self, toy, golden):
        method = cid(toy)
        v_s = golden.vs.clone().requires_grad_()
        method.start_epoch(1)
        student = toy.outputs(golden.zs, v_s)
        method.loss(toy.batch(golden.y, 1), student, toy.outputs(golden.zt, golden.vt))
        assert not method.sums.requires_grad
        assert not method.weights.requires_grad

    def test_predictions_use_the_context_classifier(self, toy, golden, slow):
        method = cid(toy)
        train_epoch(toy, golden, method, 1)
        method.start_epoch(2)
        joined = torch.cat([golden.vs, slow_context(slow, golden.zs, method.centres)], 1)
        expected = joined @ method.classifier.weight.T + method.classifier.bias
        torch.testing.assert_close(method.predict(sides(toy, golden)[0]), expected)

    def test_the_context_classifier_predicts_in_the_initial_epochs_too(self, toy, golden):
        # As in the authors' code, though no term trains it yet. There are no centres, so the context is zero.
        method = cid(toy, init_epochs=2)
        expected = golden.vs @ method.classifier.weight[:, :16].T + method.classifier.bias
        torch.testing.assert_close(method.predict(sides(toy, golden)[0]), expected)
        for epoch in (1, 2):
            train_epoch(toy, golden, method, epoch)
            torch.testing.assert_close(method.predict(sides(toy, golden)[0]), expected)


class TestAblations:
    def test_without_sample_representation(self, toy, golden):
        method = cid(toy, sr=False)
        assert set(terms_of(toy, golden, method, 2)) == {"ce", "kl", "cr"}
        assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"classifier"}

    def test_without_class_representation(self, toy, golden):
        method = cid(toy, cr=False)
        assert set(terms_of(toy, golden, method, 2)) == {"ce", "kl", "sr"}

    def test_without_intervention(self, toy, golden, slow):
        method = cid(toy, inv=False)
        train_epoch(toy, golden, method, 1)
        method.start_epoch(2)
        terms = terms_of(toy, golden, method, 2)
        assert set(terms) == {"ce", "kl", "sr", "cr"}
        assert terms["ce"].item() == pytest.approx(slow.mean(slow.cross_entropies(golden.zs, golden.y)))
        assert torch.equal(method.predict(sides(toy, golden)[0]), golden.zs)
        assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"regressors"}

    def test_all_removed_leaves_kd(self, toy, golden):
        method = cid(toy, sr=False, cr=False, inv=False)
        assert set(terms_of(toy, golden, method, 1)) == {"ce", "kl"}
        assert method.param_groups() == []

    def test_plain_squared_error_is_divided_by_the_teachers_mean_square(self, toy, golden):
        method = cid(toy, sr_loss="mse", alpha=2.0)
        labels = [golden.y[rows] for rows in PARTS]
        teachers = [toy.outputs(golden.zt[rows], golden.vt[rows]) for rows in PARTS]
        method.prepare([(toy.batch(y, 0), teacher) for y, teacher in zip(labels, teachers, strict=True)])
        regressed = golden.vs @ method.regressors[0].weight.T + method.regressors[0].bias
        errors = [sum(d * d for d in row) for row in (regressed - golden.vt).tolist()]
        squares = [sum(t * t for t in row) for row in golden.vt.tolist()]
        expected = 2.0 * (sum(errors) / 8) / (sum(squares) / 8)
        assert terms_of(toy, golden, method, 1)["sr"].item() == pytest.approx(expected)

    def test_the_mean_square_is_part_of_the_state(self, toy, golden):
        method, fresh = cid(toy, sr_loss="mse"), cid(toy, sr_loss="mse")
        method.prepare([(toy.batch(golden.y, 0), toy.outputs(golden.zt, 3 * golden.vt))])
        fresh.load_state_dict(method.state_dict())
        assert fresh.mean_squares.item() == pytest.approx(9 * golden.vt.square().sum(1).mean().item())

    def test_the_norm_aware_error_needs_no_look_at_the_teacher(self, toy):
        method = cid(toy)
        method.prepare(iter_that_must_not_be_used())
        assert method.mean_squares.tolist() == [1.0]


MAPS_S, MAPS_T = [(6, 4), (12, 8), (6, 4)], [(6, 4), (6, 4), (12, 8)]


class TestLayers:
    """CID Figure 7: the sample representations of other layers, as the channels' means over the map."""

    def method(self, toy, maps_s=MAPS_S, maps_t=MAPS_T, **params):
        return toy.method("cid", params, toy.setting(d_s=16, d_t=16, maps_s=maps_s, maps_t=maps_t, epochs=6))

    def sides(self, toy, golden):
        student = toy.outputs(golden.zs, golden.vs, [golden.fs, golden.ftb, golden.fs.flip(0)])
        return student, toy.outputs(golden.zt, golden.vt, [golden.ft, golden.ft.flip(1), golden.ftb])

    def seen(self, toy, golden, method, rows=slice(None)):
        """The student and, as the method sees it, the teacher."""
        student, teacher = self.sides(toy, golden)
        stages = [maps[rows] for maps in teacher.stages]
        return student, toy.taught(method, teacher.logits[rows], teacher.pooled[rows], stages)

    def pairs(self, toy, golden, method, stages):
        """R(v_s) and v_t of these stages (1-based), the means taken one map at a time."""
        student, teacher = self.sides(toy, golden)
        for regressor, stage in zip(method.regressors, stages, strict=True):
            v_s, v_t = (
                torch.tensor(
                    [[sum(map(sum, plane)) / len(plane) ** 2 for plane in sample] for sample in maps.tolist()],
                    dtype=torch.float64,
                )
                for maps in (student.stages[stage - 1], teacher.stages[stage - 1])
            )
            yield v_s @ regressor.weight.T + regressor.bias, v_t

    @pytest.mark.parametrize(
        ("layers", "stages"), [([1], [1]), ([2], [2]), ([3, 1], [1, 3]), ("all", [1, 2, 3]), ([1, 2, 3], [1, 2, 3])]
    )
    def test_the_mean_over_the_layers(self, toy, golden, slow, layers, stages):
        method = self.method(toy, layers=layers, alpha=2.0)
        assert [tuple(r.weight.shape) for r in method.regressors] == [
            {1: (6, 6), 2: (6, 12), 3: (12, 6)}[stage] for stage in stages
        ]
        found = method.loss(toy.batch(golden.y), *self.seen(toy, golden, method))
        errors = [slow_nm_mse(*pair) for pair in self.pairs(toy, golden, method, stages)]
        assert found["sr"].item() == pytest.approx(2 * slow.mean(errors))
        assert found["cr"].item() == pytest.approx(slow_class_relation(golden.vs, golden.vt, golden.y))  # as ever

    def test_squared_errors_are_divided_by_the_mean_square_of_their_layer(self, toy, golden, slow):
        method = self.method(toy, layers=[2, 3], sr_loss="mse", alpha=1.0)
        parts = [self.seen(toy, golden, method, rows)[1] for rows in PARTS]
        method.prepare([(toy.batch(golden.y[rows], 0), part) for rows, part in zip(PARTS, parts, strict=True)])
        expected = []
        for v_s, v_t in self.pairs(toy, golden, method, [2, 3]):
            errors, squares = ([sum(x * x for x in row) for row in rows.tolist()] for rows in (v_s - v_t, v_t))
            expected.append(slow.mean(errors) / slow.mean(squares))
        assert expected[0] != pytest.approx(expected[1], rel=0.1)
        found = method.loss(toy.batch(golden.y), *self.seen(toy, golden, method))["sr"]
        assert found.item() == pytest.approx(slow.mean(expected))

    def test_only_the_maps_chosen_are_reached(self, toy, golden):
        method = self.method(toy, layers=[3])
        student, teacher = self.seen(toy, golden, method)
        leaves = [maps.clone().requires_grad_() for maps in (student.pooled, *student.stages)]
        student = student._replace(pooled=leaves[0], stages=tuple(leaves[1:]))
        term = method.loss(toy.batch(golden.y), student, teacher)["sr"]
        gradients = torch.autograd.grad(term, leaves, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [False, False, False, True]

    def test_pooled_is_the_default_and_looks_at_no_maps(self, toy, golden):
        default, named = cid(toy), cid(toy, layers="pooled")
        named.load_state_dict(default.state_dict())
        found = [terms_of(toy, golden, method, 2)["sr"].item() for method in (default, named)]
        assert found[0] == found[1] != 0

    @pytest.mark.parametrize(
        ("params", "compared"),
        [
            ({}, False),
            ({"layers": "pooled"}, False),
            ({"layers": [2]}, True),
            ({"layers": "all"}, True),
            ({"layers": "all", "sr": False}, False),
        ],
    )
    def test_maps_are_needed_only_where_they_are_compared(self, params, compared):
        ref = MethodRef(name="cid", params=params)
        assert methods.needs(ref) == {"logits", "pooled", *(["digest"] if compared else [])}
        assert methods.maps(ref) == ({"stages"} if compared else set())

    def test_without_sample_representation_any_layers_do(self, toy):
        assert len(self.method(toy, maps_t=MAPS_T[:1], layers="all", sr=False).regressors) == 0

    @pytest.mark.parametrize(("layers", "plain"), [("all", "all"), ([3, 1], [1, 3]), ("pooled", "pooled")])
    def test_the_order_of_stages_is_no_part_of_the_parameters(self, layers, plain):
        ref = MethodRef(name="cid", params={"layers": layers})
        assert methods.params(ref)["layers"] == plain
        assert methods.params(MethodRef(name="cid", params=methods.params(ref)))["layers"] == plain

    @pytest.mark.parametrize(("maps_s", "maps_t"), [(MAPS_S[:2], MAPS_T), (MAPS_S, MAPS_T[:2])])
    def test_stages_that_one_network_lacks(self, toy, maps_s, maps_t):
        with pytest.raises(ConfigError, match=r"^cid\.layers must be stages of both networks, but got 3 of 2\.$"):
            self.method(toy, maps_s, maps_t, layers=[1, 3])
        assert self.method(toy, maps_s, maps_t, layers=[1, 2]).regressors

    def test_all_needs_as_many_stages_in_both(self, toy):
        message = r"^cid\.layers = 'all' needs networks with equally many stages, but got 2 and 3\.$"
        with pytest.raises(ConfigError, match=message):
            self.method(toy, MAPS_S[:2], MAPS_T, layers="all")

    @pytest.mark.parametrize("value", ["last", [], [0], [1, 1], [1.5], [True], ["1"], 2, None])
    def test_bad_layers(self, toy, value):
        message = (
            r"^cid\.layers must be 'pooled', 'all' or a list of different stages, of which 1 is the first, but got "
        )
        with pytest.raises(ConfigError, match=message):
            cid(toy, layers=value)


def iter_that_must_not_be_used():
    raise AssertionError("the training images were read for nothing")
    yield


class TestOptimizerGroups:
    def test_regressor_has_no_weight_decay(self, toy):
        method = cid(toy)
        groups = {frozenset(group["params"]): group for group in method.param_groups()}
        classifier = groups[frozenset(method.classifier.parameters())]
        regressor = groups[frozenset(method.regressors.parameters())]
        assert "weight_decay" not in classifier
        assert regressor["weight_decay"] == 0.0
        assert len(groups) == 2


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": -1}, r"^cid\.alpha should be greater than or equal to 0, but got -1\.$"),
        ({"tau": 0}, r"^cid\.tau should be greater than 0, but got 0\.$"),
        *[
            (
                {"init_epochs": value},
                r"^cid\.init_epochs must be a whole number of epochs or a fraction of all epochs below 1, "
                rf"but got {value}\.$",
            )
            for value in (-1, -0.5, 1.5, 2.5)
        ],
        ({"centre_momentum": 1}, r"^cid\.centre_momentum should be less than 1, but got 1\.$"),
        ({"sr_loss": "l1"}, r"^cid\.sr_loss should be 'nm_mse' or 'mse', but got 'l1'\.$"),
        ({"center_momentum": 0.5}, r"^unknown key 'center_momentum' at cid\.center_momentum\. Did you mean 'centre_"),
    ],
)
def test_bad_parameters(toy, params, message):
    with pytest.raises(ConfigError, match=message):
        cid(toy, **params)
