"""The plan's teachers: assistants, self-taught students, teachers of other methods."""

import pytest

from kdtrain import methods
from kdtrain.build import trial_id
from kdtrain.config import ConfigError, TeacherRef
from sweeps.plan import Plan, expand
from sweeps.spec import parse_text

HEAD = """
[sweep]
name = "s"
[data]
dataset = "fashion_mini"
[train]
epochs = 10
lr = 0.05
"""


def plan(text: str) -> Plan:
    return expand(parse_text(HEAD + text))


def values(plan: Plan, name: str) -> list[object]:
    """A field of the trial of each cell, in order."""
    return [getattr(plan.trials[cell.trial_id], name) for cell in plan.cells]


def test_assistants_are_trained_in_order_from_the_teacher_and_those_before_on_the_trials_images():
    made = plan("""
[teacher]
epochs = 3
seed = 7
[grid]
pair = ["resnet32/resnet8"]
method = [{ name = "dgkd", assistants = ["resnet20", "resnet14"], lam = 0.5 }]
fraction = [0.2]
seed = [1, 2]
""")
    assert list(made.teachers) == [trial_id(teacher) for teacher in made.teachers.values()]
    teacher, first, second = made.teachers.values()
    refs = [TeacherRef(model=trial.student, id=trial_id(trial)) for trial in (teacher, first, second)]
    assert [ref.model for ref in refs] == ["resnet32", "resnet20", "resnet14"]
    assert [trial.method.name for trial in (teacher, first, second)] == ["vanilla", "dgkd", "dgkd"]
    assert [trial.data.fraction for trial in (teacher, first, second)] == [1.0, 0.2, 0.2]
    assert [trial.train.epochs for trial in (teacher, first, second)] == [3, 10, 10]
    assert [trial.seed for trial in (teacher, first, second)] == [7, 7, 7]
    assert [(trial.teacher, trial.assistants) for trial in (teacher, first, second)] == [
        (None, None), (refs[0], None), (refs[0], (refs[1],))
    ]  # fmt: skip
    told = [
        (methods.params(trial.method)["assistants"], methods.params(trial.method)["pupil"]) for trial in (first, second)
    ]
    assert told == [([], True), (["resnet20"], False)]
    assert all(methods.params(trial.method)["lam"] == 0.5 for trial in (first, second))
    assert [(trial.teacher, trial.assistants) for trial in made.trials.values()] == [(refs[0], tuple(refs[1:]))] * 2


def test_assistants_are_shared_by_seeds_and_by_longer_chains_and_trained_anew_for_each_fraction():
    made = plan("""
[grid]
pair = ["resnet32/resnet8"]
method = [{ name = "dgkd", assistants = ["resnet20"] }, { name = "dgkd", assistants = ["resnet20", "resnet14"] }]
fraction = [0.2, 0.5]
seed = [1, 2]
""")
    # The teacher, and of each fraction resnet20 (for both chains) and resnet14.
    assert sorted(trial.student for trial in made.teachers.values()) == ["resnet14"] * 2 + ["resnet20"] * 2 + [
        "resnet32"
    ]


def test_assistants_of_a_composed_method_are_trained_by_all_of_it():
    made = plan("""
[grid]
pair = ["resnet32/resnet8"]
method = [{ name = "dgkd+sp", dgkd = { assistants = ["resnet14"], tau = 2.0 }, sp = { beta = 7.0 } }]
seed = [1]
""")
    _, assistant = made.teachers.values()
    assert assistant.method.name == "dgkd+sp"
    params = methods.params(assistant.method)
    assert (params["dgkd"]["pupil"], params["dgkd"]["assistants"], params["dgkd"]["tau"]) == (True, [], 2.0)
    assert params["sp"] == {"beta": 7.0}


def test_view_seed_of_the_sweep_is_not_that_of_teachers_and_assistants():
    text = (
        HEAD.replace("[train]", "view_seed = 5\n[train]")
        + """
[teacher]
seed = 7
[grid]
pair = ["resnet14/resnet8"]
method = [{ name = "dgkd", assistants = ["resnet8"] }]
seed = [1]
"""
    )
    made = expand(parse_text(text))
    assert [trial.views for trial in made.teachers.values()] == [7, 7]
    assert values(made, "views") == [5]


@pytest.mark.parametrize(
    ("assistants", "message"),
    [
        ("['resnetx']", r"^unknown model 'resnetx' at dgkd\.assistants\..*\(in the trial"),
        ("[]", r"^dgkd\.assistants must"),
    ],
)
def test_assistants_that_cannot_be_are_refused(assistants, message):
    with pytest.raises(ConfigError, match=message):
        plan(f"""
[grid]
pair = ["resnet14/resnet8"]
method = [{{ name = "dgkd", assistants = {assistants} }}]
seed = [1]
""")


def test_self_taught_method_has_a_teacher_of_the_students_architecture_in_all_pairs():
    made = plan("""
[teacher]
epochs = 3
seed = 7
method = "ls"
[grid]
pair = ["resnet8", "resnet14/resnet8"]
method = ["tf_kd", "vanilla"]
fraction = [0.2]
seed = [1]
""")
    ((key, teacher),) = made.teachers.items()
    assert (teacher.student, teacher.method.name) == ("resnet8", "vanilla")
    # Part of the method: the trial's own images and recipe, not [teacher]'s but for the seed.
    (trial,) = (trial for trial in made.trials.values() if trial.method.name == "tf_kd")
    assert (teacher.data, teacher.train, teacher.seed) == (trial.data, trial.train, 7)
    assert trial.teacher == TeacherRef(model="resnet8", id=key)
    assert len(made.trials) == 2


def test_variant_that_is_not_self_taught_has_no_teacher():
    made = plan("""
[grid]
pair = ["resnet8"]
method = [{ name = "tf_kd", variant = "reg" }]
seed = [1]
""")
    assert (made.teachers, values(made, "teacher")) == ({}, [None])


def test_teachers_method_is_part_of_their_identity_and_of_their_students():
    def of(method: str) -> tuple[str, str]:
        grid = '[grid]\npair = ["resnet14/resnet8"]\nmethod = ["kd"]\nseed = [1]\n'
        made = plan(f"[teacher]\n{method}\n{grid}")
        ((key, _),) = made.teachers.items()
        return key, made.cells[0].trial_id

    assert of("") == of('method = "vanilla"')
    assert of('method = "ls"') == of('method = { name = "ls", epsilon = 0.1 }')
    ids = [of(method) for method in ("", 'method = "ls"', 'method = { name = "ls", epsilon = 0.2 }')]
    assert len({teacher for teacher, _ in ids}) == len({student for _, student in ids}) == 3


def test_teacher_that_cannot_be_trained_is_named(monkeypatch):
    class Picky(methods.METHODS["ls"]):
        """Refuses the teacher's network."""

        def __init__(self, config, setting):
            raise ConfigError("picky.width must fit.")

    monkeypatch.setitem(methods.METHODS, "picky", Picky)
    with pytest.raises(ConfigError, match=r"^picky\.width must fit\. \(in the training of the teacher resnet14\) \(in"):
        plan("""
[teacher]
method = "picky"
[grid]
pair = ["resnet14/resnet8"]
method = ["kd"]
seed = [1]
""")
