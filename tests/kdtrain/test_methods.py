"""The contract of all methods, on real networks of the smallest kind: hooks on noise, whole trials on real images."""

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from kdtrain import build, data, methods
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig, Where
from kdtrain.loop import Training
from kdtrain.methods.base import Batch, Method, Plugin, Range, first_rows

PLUGGED = [f"{host}+{name}" for name, plugin in methods.PLUGINS.items() for host in plugin.hosts]
NAMES = [*methods.METHODS, *PLUGGED, "fitnet+kd", "cid+sp"]
WITH_KD = [f"{name}+kd" for name in methods.METHODS if name != "kd"]
# What a method cannot do without.
PARAMS: dict[str, dict[str, Any]] = {"dgkd": {"assistants": ["resnet8"]}}
VARIANTS = {
    "fitnet of the paper": MethodRef(name="fitnet", params={"variant": "paper"}),
    "tf_kd without a teacher": MethodRef(name="tf_kd", params={"variant": "reg"}),
    "crd of any positive": MethodRef(name="crd", params={"positives": "relax", "negatives": 20}),
    "srrl of maps": MethodRef(name="srrl", params={"on": "map"}),
    "cid of all layers": MethodRef(name="cid", params={"layers": "all", "sr_loss": "mse", "centre_momentum": 0.5}),
    "ipwd of averages": MethodRef(name="ipwd", params={"ema": 0.9, "norm": "running", "teacher_bn": "train"}),
    "sskd+ipwd of all views": MethodRef(name="sskd+ipwd", params={"ipwd": {"turned": True}}),
}
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("mini")
EPOCHS = 4  # of which one is initial for cid, so that in epoch 2 all terms are active
# Three classes of the ten, two of them with two samples.
LABELS = torch.tensor([0, 0, 1, 1, 2])
SAME = ("resnet14", "resnet8")
OTHER = ("vgg8", "resnet8")
# Methods for networks of equal stages, or equal channels.
OTHERS = {"ab": ("resnet14", "wrn_16_1"), "fsp": ("resnet14", "wrn_16_1")}


def reference(name):
    """A method by name with what it cannot do without, also as a part of another; VARIANTS have names of their own."""
    if name in VARIANTS:
        return VARIANTS[name]
    if "+" not in name:
        return MethodRef(name=name, params=PARAMS.get(name, {}))
    return MethodRef(name=name, params={part: PARAMS[part] for part in name.split("+") if part in PARAMS})


def config(name, dataset, pair, seed=0, **recipe):
    """The trial of a method with its teachers; weights have the architecture's name as their id."""
    ref, (teacher, student) = reference(name), pair
    teacher = student if methods.self_taught(ref) else teacher
    assistants = tuple(TeacherRef(model=model, id=model) for model in methods.assistants(ref))
    return TrialConfig(
        data=DataConfig(dataset=dataset),
        train=Recipe(**recipe),
        teacher=TeacherRef(model=teacher, id=teacher) if methods.needs(ref) else None,
        assistants=assistants or None,
        student=student,
        method=ref,
        seed=seed,
    )


class Run:
    """A method with its networks: a batch of noise in the shape of fashion_mini."""

    def __init__(self, name, seed=0, dataset="fashion_mini"):
        trial = config(name, dataset, SAME, seed, epochs=EPOCHS)
        setting, self.method = build.networks(trial, CPU, lambda model, ref: None)
        self.student, self.teacher = setting.student.train(), setting.teacher
        self.assistants, self.ref = setting.assistants, trial.method
        self.method.allocate(torch.arange(5), LABELS)
        self.method.train()
        if self.teacher is not None:
            self.teacher.train(self.method.teacher_trains)
        turns = 4 if methods.rotated(trial.method) else 1
        self.images = torch.randn(5 * turns, 1, 28, 28, generator=torch.Generator().manual_seed(1))
        self.partners = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(2))

    def teach(self):
        """Of the teacher only what the method says that it needs."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            outputs = methods.digested(self.method.digests(), self.teacher(self.images))
        needs, nothing = methods.needs(self.ref), torch.empty(0)
        return outputs._replace(
            logits=outputs.logits if "logits" in needs else nothing,
            pooled=outputs.pooled if "pooled" in needs else nothing,
            stem=nothing,
            stages=outputs.stages if "stages" in needs else (),
            preact=outputs.preact if "preact" in needs else (),
        )

    def batch(self, epoch):
        with torch.no_grad():
            partner = self.student(self.partners) if methods.partners(self.ref) else None
            assistants = tuple(model(self.images) for model in self.assistants)
        return Batch(self.images, LABELS, torch.arange(5), epoch, partner, assistants)

    def terms(self, epoch):
        torch.manual_seed(epoch)
        return self.method.loss(self.batch(epoch), self.student(self.images), self.teach())

    def train_epoch(self, epoch):
        """Start an epoch of two batches; the terms of the second."""
        self.method.start_epoch(epoch)
        self.terms(epoch)
        return self.terms(epoch)

    @property
    def trained(self):
        """The method's parameters that the optimizer gets."""
        return [parameter for group in self.method.param_groups() for parameter in group["params"]]


@pytest.fixture(params=NAMES)
def run(request):
    return Run(request.param)


def test_terms_are_finite_scalars_of_float32(run):
    for epoch in (1, 2, EPOCHS):
        terms = run.train_epoch(epoch)
        assert terms
        for name, term in terms.items():
            assert term.shape == (), name
            assert term.dtype == torch.float32, name
            assert torch.isfinite(term), name
            assert term >= -1e-6, name


def test_gradients_reach_every_parameter_of_student_and_method(run):
    run.train_epoch(1)
    sum(run.train_epoch(2).values()).backward()
    own = {id(parameter): key for key, parameter in run.method.named_parameters()}
    trained = {own[id(parameter)]: parameter for parameter in run.trained}
    for key, parameter in {**dict(run.student.named_parameters()), **trained}.items():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_the_teacher_stays_as_it_is(run):
    if run.teacher is None:
        return
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    before = {key: value.clone() for key, value in run.teacher.state_dict().items()}
    run.train_epoch(1)
    sum(run.train_epoch(2).values()).backward()
    assert all(parameter.grad is None for parameter in run.teacher.parameters())
    for key, value in run.teacher.state_dict().items():
        moves = run.method.teacher_trains and key.endswith(statistics)
        assert torch.equal(value, before[key]) is not moves, key


def test_groups_hold_every_trained_parameter_once(run):
    assert len(run.trained) == len(set(run.trained))
    own = {parameter for parameter in run.method.parameters() if parameter.requires_grad}
    assert set(run.trained) <= own
    if run.method.pretraining() is None:  # what that stage has trained may be fixed now
        assert set(run.trained) == own
    networks = [run.student, run.teacher, *run.assistants]
    others = {parameter for model in networks if model is not None for parameter in model.parameters()}
    assert others.isdisjoint(run.method.parameters())
    assert {key for group in run.method.param_groups() for key in group} <= {"params", "weight_decay", "lr_scale"}


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_instance_goes_on_from_the_saved_state(name):
    old, new = Run(name, seed=0), Run(name, seed=1)
    old.train_epoch(1)
    for mine, its in (
        (new.student, old.student),
        (new.teacher, old.teacher),
        (new.method, old.method),
        *zip(new.assistants, old.assistants, strict=True),
    ):
        if mine is not None:
            mine.load_state_dict(its.state_dict())
    expected, found = old.train_epoch(2), new.train_epoch(2)
    assert {key: term.item() for key, term in found.items()} == {key: term.item() for key, term in expected.items()}


def test_predictions_are_logits_for_every_class(run):
    run.train_epoch(1)
    run.train_epoch(2)
    run.student.eval()
    run.method.eval()
    with torch.inference_mode():
        logits = run.method.predict(first_rows(run.student(run.images), 5))
    assert logits.shape == (5, 10)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_predicting_changes_no_state(run):
    run.train_epoch(1)
    before = {key: value.clone() for key, value in run.method.state_dict().items()}
    with torch.inference_mode():
        run.method.predict(first_rows(run.student(run.images), 5))
    assert all(torch.equal(value, before[key]) for key, value in run.method.state_dict().items())


def test_preparing_takes_the_plain_images_with_the_teachers_outputs(run):
    batch = Batch(run.images, LABELS, torch.arange(5), 0)
    run.method.prepare([(batch, run.teach())] * 2)
    assert all(torch.isfinite(term) for term in run.train_epoch(1).values())


def test_what_predicting_needs_is_part_of_the_state(run):
    state = run.method.state_dict()
    prefix = f"by_name.{run.ref.name.split('+')[0]}." if "+" in run.ref.name else ""
    for key, value in run.method.predictor().items():
        assert torch.equal(value, state[prefix + key]), key
    predicts = type(run.method).predict is not Method.predict and "cid" in run.ref.name
    assert bool(run.method.predictor()) is predicts


@pytest.mark.parametrize("name", WITH_KD)
def test_composition_with_kd_adds_its_term(name):
    terms = Run(name).train_epoch(2)
    alone = Run(name.removesuffix("+kd")).train_epoch(2)
    assert set(terms) == {*alone, "kd"}
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("name", methods.METHODS)
@pytest.mark.parametrize("num_classes", [10, 100, 200])
def test_any_number_of_classes(name, num_classes, monkeypatch):
    info = data.DATASETS["fashion_mini"]
    monkeypatch.setitem(data.DATASETS, "wide", replace(info, name="wide", num_classes=num_classes))
    build.check(config(name, "wide", SAME, epochs=EPOCHS))  # on the meta device
    run = Run(name, dataset="wide")
    run.train_epoch(1)
    assert all(torch.isfinite(term) for term in run.train_epoch(2).values())
    assert run.method.predict(first_rows(run.student(run.images), 5)).shape == (5, num_classes)


# Whole trials: 61 real images in batches of 30, 30 and 1.


def start(name, pair, weights, state=None, device="cpu", **recipe):
    trial = config(name, "mini", pair, batch_size=30, lr=0.01, **recipe)
    build.check(trial)
    where = Where(
        teacher_weights=trial.teacher and str(weights / trial.teacher.id),
        assistant_weights=tuple(str(weights / ref.id) for ref in trial.assistants or ()),
        device=device,
    )
    return Training(trial, where, state)


@pytest.mark.parametrize("name", [*methods.METHODS, *PLUGGED, *VARIANTS])
def test_a_trial_goes_on_bit_for_bit_from_each_of_its_epochs(outcome, name, weights):
    whole, packed = start(name, SAME, weights, epochs=3), []
    while not whole.done:
        whole.run_epoch()
        packed.append(whole.pack())
    for state in packed[:-1]:  # killed after each epoch, also between the stages
        resumed = start(name, SAME, weights, state, epochs=3)
        torch.manual_seed(999)  # whatever the process did before must not matter
        while not resumed.done:
            resumed.run_epoch()
        assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("name", [*methods.METHODS, *PLUGGED])
def test_networks_of_different_families_train(name, weights):
    training = start(name, OTHERS.get(name, OTHER), weights, epochs=2, precision="bf16")
    before = {key: value.clone() for key, value in training.student.named_parameters()}
    own = {key: value.clone() for key, value in training.method.named_parameters()}
    while not training.done:
        training.run_epoch()
    stages = [record.stage for record in training.records]
    pretraining = training.method.pretraining()
    assert stages == ["pretrain"] * (pretraining.epochs if pretraining else 0) + ["train"] * 2
    assert all(not torch.equal(value, before[key]) for key, value in training.student.named_parameters())
    moved = {key for key, value in training.method.named_parameters() if not torch.equal(value, own[key])}
    assert moved == own.keys() - {key for key in own if "averaged" in key}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_method_trains_on_cuda(weights):
    for name in (*methods.METHODS, *PLUGGED, *VARIANTS):
        training = start(name, SAME, weights, epochs=2, device="cuda")
        while not training.done:
            training.run_epoch()
        logits, _ = training.predictions("test")
        assert logits.device.type == "cuda", name
        assert torch.isfinite(logits).all(), name


@pytest.mark.parametrize(
    ("name", "pair", "message"),
    [
        ("fsp", ("wrn_16_2", "resnet8"), "fsp needs"),
        ("fsp", ("vgg8", "resnet8"), "fsp needs"),
        ("ab", ("wrn_16_1", "vgg8"), "ab needs"),
        ("tf_kd", ("resnet14", "resnet8"), None),
    ],
)
def test_pairs_that_cannot_work_are_refused_at_planning(name, pair, message):
    trial = config(name, "fashion_mini", pair, epochs=EPOCHS)
    if message is None:
        trial = trial.model_copy(update={"teacher": TeacherRef(model=pair[0], id="0")})
        message = "needs a teacher of the student's architecture, resnet8, but got resnet14"
    with pytest.raises(ConfigError, match=message):
        build.check(trial)


class TestFlatParameters:
    """What a search sees of a method: parameters by flat name."""

    @pytest.mark.parametrize("name", [*NAMES, *WITH_KD])
    def test_default_spaces_hold_the_defaults(self, name):
        # Of kd after another method, alpha is 1, and plug-ins change defaults of their hosts.
        ref = reference(name)
        values = methods.defaults(ref)
        for key, space in methods.search_space(ref).items():
            if isinstance(space, Range):
                assert space.low <= values[key] <= space.high, key
            else:
                assert values[key] in space, key

    @pytest.mark.parametrize("name", [*NAMES, *WITH_KD])
    def test_ends_of_default_spaces_are_values(self, name):
        ref = reference(name)
        for key, space in methods.search_space(ref).items():
            for value in (space.low, space.high) if isinstance(space, Range) else space:
                changed = methods.with_values(ref, {key: value})
                assert methods.defaults(changed) == {**methods.defaults(ref), key: value}

    @pytest.mark.parametrize("name", [*NAMES, *WITH_KD])
    def test_defaults_say_the_same_as_none(self, name):
        ref = reference(name)
        full = methods.with_values(ref, methods.defaults(ref))
        assert methods.params(full) == methods.params(ref)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("vanilla", {}),
            ("kd", {"alpha": Range(0.1, 10), "tau": Range(1, 20)}),
            ("tf_kd", {"alpha": Range(0.05, 1, log=False), "tau": Range(1, 20)}),
            ("fitnet+kd", {"fitnet.beta": Range(10, 1000), "kd.alpha": Range(0.1, 10), "kd.tau": Range(1, 20)}),
            ("vanilla+kd", {"kd.alpha": Range(0.1, 10), "kd.tau": Range(1, 20)}),
            ("ps_kd+ipwd", {"ps_kd.alpha": Range(0.1, 1, log=False)}),  # the plug-in has none
        ],
    )
    def test_search_space(self, name, expected):
        assert methods.search_space(MethodRef(name=name)) == expected

    def test_search_space_of_a_plugin_counts(self, monkeypatch):
        monkeypatch.setattr(
            methods.PLUGINS["ipwd"], "search_space", {"power": Range(0.5, 2), "norm": ("sample", "none")}
        )
        found = methods.search_space(MethodRef(name="ps_kd+ipwd"))
        assert found["ipwd.power"] == Range(0.5, 2)
        assert found["ipwd.norm"] == ("sample", "none")

    def test_only_the_first_has_a_weight_of_the_cross_entropy(self, monkeypatch):
        monkeypatch.setattr(methods.METHODS["kd"], "search_space", {"gamma": Range(0.1, 1), "tau": Range(1, 20)})
        for name, expected in (
            ("kd", ["gamma", "tau"]),
            ("kd+sp", ["kd.gamma", "kd.tau", "sp.beta"]),
            ("sp+kd", ["sp.beta", "kd.tau"]),
        ):
            assert list(methods.search_space(MethodRef(name=name))) == expected
        assert "kd.gamma" in methods.defaults(MethodRef(name="kd+sp"))
        assert "kd.gamma" not in methods.defaults(MethodRef(name="sp+kd"))

    @pytest.mark.parametrize(
        ("name", "params", "expected"),
        [
            ("vanilla", {}, {}),
            ("kd", {"tau": 2}, {"gamma": 0.1, "alpha": 0.9, "tau": 2.0}),
            ("sp+kd", {"sp": {"beta": 5.0}}, {"sp.beta": 5.0, "kd.alpha": 1.0, "kd.tau": 4.0}),
            (
                "dkd+lskd",
                {},
                {"dkd.gamma": 1.0, "dkd.alpha": 9.0, "dkd.beta": 72.0, "dkd.tau": 2.0, "dkd.warmup": 1 / 12},
            ),
        ],
    )
    def test_defaults(self, name, params, expected):
        assert methods.defaults(MethodRef(name=name, params=params)) == expected

    def test_defaults_that_are_not_set_are_none(self):
        found = methods.defaults(MethodRef(name="cid", params={"layers": [2, 1]}))
        assert (found["init_epochs"], found["layers"]) == (None, [1, 2])

    @pytest.mark.parametrize(
        ("name", "params", "values", "expected"),
        [
            ("kd", {"tau": 2.0, "gamma": 0.5}, {"tau": 8.0, "alpha": 3.0}, {"tau": 8.0, "gamma": 0.5, "alpha": 3.0}),
            ("sp+kd", {}, {"kd.tau": 8.0, "sp.beta": 1.0}, {"kd": {"tau": 8.0}, "sp": {"beta": 1.0}}),
            ("sp+kd", {"kd": {"tau": 2.0, "alpha": 0.5}}, {"kd.tau": 8.0}, {"kd": {"tau": 8.0, "alpha": 0.5}}),
            ("ps_kd+ipwd", {"ps_kd": {"tau": 2.0}}, {"ipwd.start": 0}, {"ps_kd": {"tau": 2.0}, "ipwd": {"start": 0}}),
            ("kd", {"tau": 2.0}, {}, {"tau": 2.0}),
        ],
    )
    def test_with_values(self, name, params, values, expected):
        ref = MethodRef(name=name, params=params)
        before = ref.model_dump()
        assert methods.with_values(ref, values) == MethodRef(name=name, params=expected)
        assert ref.model_dump() == before

    @pytest.mark.parametrize(
        ("name", "parameter", "expected"),
        [
            ("kd", "tau", False),
            ("fitnet", "hint", True),
            ("fitnet", "variant", False),
            ("crd", "negatives", True),
            ("crd", "replacement", False),
            ("cid", "layers", False),
            ("cid", "init_epochs", False),  # or a share of all epochs
            ("fitnet+kd", "fitnet.hint", True),
            ("ps_kd+ipwd", "ipwd.w_max", False),
        ],
    )
    def test_whole(self, name, parameter, expected):
        assert methods.whole(MethodRef(name=name), parameter) is expected

    @pytest.mark.parametrize(
        ("name", "parameter", "message"),
        [
            ("kd", "tua", r"^unknown parameter 'tua' at kd\. Did you mean 'tau'\? Known: alpha, gamma, tau\.$"),
            ("kd", "kd.tau", r"^unknown parameter 'kd\.tau' at kd\. "),
            ("vanilla", "tau", r"^unknown parameter 'tau' at vanilla\. "),
            ("sp+kd", "tau", r"^unknown parameter 'tau' at sp\+kd\..* Known: kd\.alpha, kd\.tau, sp\.beta\.$"),
            ("sp+kd", "kd.gamma", r"^unknown parameter 'kd\.gamma' at sp\+kd\. "),
            ("ps_kd+ipwd", "ipwd.alpha", r"^unknown parameter 'ipwd\.alpha' at ps_kd\+ipwd\. "),
        ],
    )
    def test_unknown_parameters_list_the_known(self, name, parameter, message):
        for use in (methods.whole, lambda ref, key: methods.with_values(ref, {key: 1.0})):
            with pytest.raises(ConfigError, match=message):
                use(MethodRef(name=name), parameter)


class TestBlindEpochs:
    @pytest.mark.parametrize("name", [*NAMES, *WITH_KD])
    def test_only_cid_has_any(self, name):
        assert methods.blind_epochs(reference(name), 24) == (2 if name.startswith("cid") else 0)

    @pytest.mark.parametrize(
        ("name", "params", "expected"),
        [
            ("cid+sp", {"cid": {"init_epochs": 3}}, 3),
            ("cid+sp", {"cid": {"inv": False, "init_epochs": 3}}, 0),
            ("sp+cid", {"cid": {"inv": False, "init_epochs": 3}}, 0),
        ],
    )
    def test_those_of_parts_are_the_first_ones(self, name, params, expected):
        assert methods.blind_epochs(MethodRef(name=name, params=params), 24) == expected

    @pytest.mark.parametrize("name", [*NAMES, *WITH_KD])
    def test_what_predicts_learns_from_the_first_epoch_that_is_not_blind(self, name):
        run, blind = Run(name), methods.blind_epochs(reference(name), EPOCHS)
        own = [value for key, value in run.method.named_parameters() if key.endswith("classifier.weight")]
        weight = own[0] if blind else run.student.head.weight
        for epoch in range(1, blind + 2):
            sum(run.train_epoch(epoch).values()).backward()
            assert (weight.grad is not None) is (epoch > blind)
        assert weight.grad.abs().sum() > 0


class TestRegistry:
    def test_a_method_is_the_file_of_its_name(self):
        for name, cls in methods.METHODS.items():
            assert cls.__module__ == f"kdtrain.methods.{name}"
        assert methods.METHODS.keys() >= methods.PLUGINS.keys()

    def test_methods_are_final_and_use_the_base_alone(self):
        assert all(cls.__bases__ == (Method,) for cls in methods.METHODS.values())
        assert all(cls.__bases__ == (Plugin,) for cls in methods.PLUGINS.values())

    @pytest.mark.parametrize("name", methods.METHODS)
    def test_papers_and_search_spaces(self, name):
        cls = methods.METHODS[name]
        assert cls.paper is not None or name == "vanilla"
        for key, space in cls.search_space.items():
            assert key in cls.Config.model_fields
            if isinstance(space, Range):
                assert space.low < space.high
                assert space.low > 0 or not space.log
            for value in (space.low, space.high) if isinstance(space, Range) else space:
                methods.resolve(MethodRef(name=name, params={**PARAMS.get(name, {}), key: value}))

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("vanilla", set()),
            ("kd", {"logits"}),
            ("ipwd", {"logits"}),
            ("fitnet", {"stages"}),
            ("sp", {"stages"}),
            ("cid", {"logits", "pooled"}),
            ("vanilla+kd", {"logits"}),
            ("cid+sp", {"logits", "pooled", "stages"}),
        ],
    )
    def test_needs(self, name, expected):
        assert methods.needs(MethodRef(name=name)) == expected

    @pytest.mark.parametrize(
        ("name", "expected"), [("kd", False), ("cid", True), ("cid+kd", True), ("fitnet+kd", False), ("vanilla", False)]
    )
    def test_nesterov(self, name, expected):
        assert methods.nesterov(MethodRef(name=name)) is expected

    @pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
    def test_digests_are_of_the_method_that_their_names_begin_with(self, name):
        run = Run(name)
        names = run.method.digests()
        assert bool(names) is ("digest" in methods.needs(run.ref))
        if names:
            assert {each.partition(":")[0] for each in names} <= set(name.split("+")) | {"cid"}
            digests = methods.digested(names, run.teacher(run.images)).digests
            assert tuple(digests) == names
            assert all(len(values) == len(run.images) for values in digests.values())

    @pytest.mark.parametrize(
        ("name", "params", "why"),
        [
            ("kd", {}, None),
            ("at", {}, None),
            ("cid", {"layers": "all"}, None),
            ("crd+kd", {}, None),
            ("vanilla", {}, None),
            ("fitnet+kd", {}, "it looks at whole maps"),
            ("ipwd", {"teacher_bn": "train"}, "the teacher is in train mode"),
            ("wsld", {"teacher_bn": "eval"}, None),
            ("sskd", {}, "images are turned"),
        ],
    )
    def test_why_a_teacher_must_be_asked_in_each_step(self, name, params, why):
        ref = MethodRef(name=name, params=params)
        assert methods.why_live(ref) == why
        assert methods.cacheable(ref) is (why is None)

    def test_nesterov_is_the_first_methods(self, monkeypatch):
        monkeypatch.setattr(methods.METHODS["kd"], "nesterov", True)
        assert [methods.nesterov(MethodRef(name=name)) for name in ("kd+sp", "sp+kd")] == [True, False]

    def test_version(self, monkeypatch):
        monkeypatch.setattr(methods.METHODS["kd"], "version", 3)
        assert [methods.version(MethodRef(name=name)) for name in ("kd", "fitnet+kd", "kd+sp")] == ["3", "1+3", "3+1"]

    # The weights and temperatures of the papers' CIFAR-100 runs.
    DEFAULTS: ClassVar[dict[str, dict[str, Any]]] = {
        "vanilla": {},
        "kd": {"gamma": 0.1, "alpha": 0.9, "tau": 4.0},
        "fitnet": {"beta": 100.0, "hint": 2},
        "at": {"beta": 1000.0},
        "sp": {"beta": 3000.0},
        "vid": {"beta": 1.0},
        "pkt": {"beta": 30000.0},
        "ft": {"beta": 200.0, "pretrain_epochs": 0.125},
        "ab": {"pretrain_epochs": 0.125},
        "fsp": {"pretrain_epochs": 0.125},
        "nst": {"beta": 50.0},
        "crd": {"beta": 0.8, "tau": 0.07, "negatives": 16384, "replacement": False},
        "wsld": {"alpha": 2.25, "tau": 4.0},
        "cs_kd": {"tau": 4.0},
        "ls": {"epsilon": 0.1},
        "dkd": {"alpha": 1.0, "beta": 8.0, "tau": 4.0},
        "dist": {"tau": 4.0},
        "lskd": {"gamma": 0.1, "alpha": 9.0, "tau": 2.0},
        "cid": {
            "alpha": 10.0, "beta": 1.0, "tau": 4.0, "init_epochs": None, "centre_momentum": 0.0,
            "sr": True, "cr": True, "inv": True, "sr_loss": "nm_mse",
        },
        "ipwd": {
            "alpha": 5.0, "tau": 10.0, "cls_head": True, "norm": "sample", "weights": "sample", "main_ce": True,
            "joint": False, "correction": 1, "detach": True, "floor": 1e-7, "w_max": None, "power": 1.0,
            "unit_mean": False, "tau_h": 1.0, "start": 0, "ema": 0.0, "cls_lr_scale": 1.0,
            "cls_weight_decay": None, "teacher_bn": "eval",
        },
    }  # fmt: skip

    @pytest.mark.parametrize("name", DEFAULTS)
    def test_default_parameters(self, name):
        found = methods.resolve(MethodRef(name=name))[name].model_dump()
        assert {key: found[key] for key in self.DEFAULTS[name]} == self.DEFAULTS[name]

    @pytest.mark.parametrize("name", methods.METHODS)
    def test_parameters_that_are_none_are_left_out(self, name):
        defaults = methods.METHODS[name].Config().model_dump(mode="json")
        expected = {key: value for key, value in defaults.items() if value is not None}
        assert methods.params(MethodRef(name=name)) == expected
        assert methods.params(MethodRef(name=name, params=defaults)) == expected

    def test_parameters_that_are_none_are_left_out_of_every_part(self):
        parts = methods.params(MethodRef(name="cid+ipwd", params={"ipwd": {"w_max": 20.0}}))
        assert parts.keys() == {"cid", "ipwd"}
        assert "init_epochs" not in parts["cid"]
        assert parts["ipwd"].keys() == self.DEFAULTS["ipwd"].keys() - {"cls_weight_decay"}
        assert parts["ipwd"]["w_max"] == 20.0

    @pytest.mark.parametrize("name", NAMES)
    def test_full_parameters_say_the_same_as_none(self, name):
        full = methods.params(MethodRef(name=name))
        assert methods.params(MethodRef(name=name, params=full)) == full
        assert list(methods.resolve(MethodRef(name=name))) == name.split("+")

    def test_a_plugin_has_its_hosts_defaults_and_only_its_own_parameters(self):
        ref = MethodRef(name="ps_kd+ipwd")
        assert methods.params(ref)["ipwd"]["start"] == 0.75
        with pytest.raises(ConfigError, match=r"^unknown key 'alpha' at ipwd\.alpha\. Known: cls_head, "):
            methods.resolve(MethodRef(name=ref.name, params={"ipwd": {"alpha": 1.0}}))

    @pytest.mark.parametrize("name", methods.METHODS)
    def test_optional_hooks_are_there_exactly_where_they_are_asked_for(self, name):
        run = Run(name)
        staged = run.method.pretraining() is not None or name == "fitnet"  # in the paper's variant
        assert (type(run.method).pretrain_loss is not Method.pretrain_loss) is staged
        is_host = name in methods.PLUGINS["ipwd"].hosts
        assert (type(run.method).per_sample is not Method.per_sample) is is_host

    def test_what_compares_images_needs_two_in_a_batch(self):
        trial = config("sp", "fashion_mini", SAME, batch_size=1)
        message = (
            r"^train\.batch_size must be at least 2 for method 'sp', which compares the images of a batch, but got 1"
        )
        with pytest.raises(ConfigError, match=message):
            build.check(trial)
        build.check(config("kd", "fashion_mini", SAME, batch_size=1))

    def test_the_order_of_parts_is_checked_also_after_the_other_one(self):
        build.check(config("cid+crd", "fashion_mini", SAME, epochs=EPOCHS))
        with pytest.raises(ConfigError, match="cid must stand first in 'crd\\+cid'"):
            build.check(config("crd+cid", "fashion_mini", SAME, epochs=EPOCHS))

    def test_a_host_has_one_plugin(self, monkeypatch):
        monkeypatch.setitem(methods.PLUGINS, "sp", methods.PLUGINS["ipwd"])
        with pytest.raises(ConfigError, match="one plug-in of sskd at most, but got ipwd and sp"):
            methods.resolve(MethodRef(name="sskd+ipwd+sp"))

    def test_one_part_has_a_stage_before_the_epochs(self):
        trial = config("ab+fsp", "fashion_mini", SAME, epochs=EPOCHS)
        with pytest.raises(ConfigError, match=r"one method at most may have a stage .* but ab and fsp have one"):
            build.check(trial)

    @pytest.mark.parametrize("name", methods.METHODS)
    def test_unknown_parameters_list_the_known(self, name):
        known = ", ".join(sorted(methods.METHODS[name].Config.model_fields))
        message = rf"^unknown key 'qqq' at {name}\.qqq\. Known: {known}\.$" if known else "unknown key 'qqq'"
        with pytest.raises(ConfigError, match=message):
            methods.resolve(MethodRef(name=name, params={"qqq": 1}))

    def test_unknown_methods_list_the_known(self):
        known = ", ".join(sorted(methods.METHODS))
        message = rf"^unknown method 'ipdw' at method\. Did you mean 'ipwd'\? Known: {known}\.$"
        with pytest.raises(ConfigError, match=message):
            methods.resolve(MethodRef(name="ipdw"))
