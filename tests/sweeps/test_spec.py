"""Bad input in a spec: one message with rule, key path and value, before anything starts."""

import pytest

from kdtrain.config import ConfigError
from sweeps.plan import expand
from sweeps.spec import parse_text

GOOD = """
[sweep]
name = "s"
[data]
dataset = "fashion_mini"
[train]
epochs = 4
[grid]
pair = ["resnet14/resnet8"]
method = ["vanilla", "kd"]
seed = [1]
"""


def plan_of(text: str) -> object:
    return expand(parse_text(text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 4", "epoch = 4", r"unknown key 'epoch' at train\.epoch\. Did you mean 'epochs'\? Known: augment, "),
        ("epochs = 4", 'epochs = "4"', r"train\.epochs should be a valid integer, but got '4'"),
        ("epochs = 4", "epochs = 0", r"train\.epochs should be greater than or equal to 1, but got 0"),
        ("epochs = 4", "epochs = true", r"train\.epochs should be a valid integer, but got True"),
        ("epochs = 4", "lr = nan", r"train\.lr should be .*finite"),
        ("epochs = 4", "lr = -0.1", r"train\.lr should be greater than 0, but got -0\.1"),
        ("epochs = 4", 'precision = "fp8"', r"train\.precision should be 'fp32' or 'bf16', but got 'fp8'"),
        ("epochs = 4", "lr_milestones = [1, -2]", r"train\.lr_milestones\[1\]"),
        ("seed = [1]", "seed = [1, -1]", r"grid\.seed\[1\] should be greater than or equal to 0, but got -1"),
        ("seed = [1]", "seed = [1, 1]", r"grid\.seed must not repeat a value, but got \[1, 1\]"),
        ("seed = [1]", "seed = []", r"grid\.seed "),
        ("seed = [1]", "seeds = [1]", r"grid\.seed is required"),
        ("seed = [1]", "seed = [1]\nfraction = [0.5, 1.5]", r"grid\.fraction\[1\] should be .* to 1, but got 1\.5"),
        ("seed = [1]", "seed = [1]\nfraction = [0.0]", r"grid\.fraction\[0\] should be greater than 0, but got 0"),
        ("seed = [1]", "seed = [1]\nfraction = [nan]", r"grid\.fraction\[0\]"),
        ("seed = [1]", "seed = [1]\nlr = [0.1, -1]", r"grid\.lr\[1\]\.lr should be greater than 0"),
        ("seed = [1]", "seed = [1]\nlr = 0.1", r"grid\.lr must be a list of values, but got 0\.1"),
        ("seed = [1]", "seed = [1]\nfractions = [0.1]", r"unknown axis 'fractions' at grid.*Did you mean 'fraction'"),
        ('"kd"]', '"kdd"]', r"unknown method 'kdd' at grid\.method\[1\]\. Did you mean 'kd'\? Known: ab, at, "),
        ('"kd"]', '"kd+kd"]', r"grid\.method\[1\] must name each method once, but got 'kd\+kd'"),
        ('"kd"]', '{ name = "kd", alhpa = 1.0 }]', r"unknown key 'alhpa' at kd\.alhpa\. Did you mean 'alpha'"),
        (
            '"kd"]',
            '{ name = "cid", init_epochs = 4 }]',
            r"cid needs an epoch after its 4 of init_epochs, but got epochs = 4",
        ),
        ("resnet8", "resnet21", r"grid\.pair\[0\]"),
        ("resnet14", "resnet15", r"grid\.pair\[0\]"),
        ("resnet14/resnet8", "alexnet", r"unknown model 'alexnet' at grid\.pair\[0\]"),
        (
            "resnet14/",
            "",
            r"method 'kd' needs a teacher \(its logits\), but got none\. \(in the trial pair = resnet8",
        ),
        ("fashion_mini", "fashion", r"unknown data set 'fashion' at data\.dataset\. Did you mean 'fashion_mini'"),
        ('name = "s"', 'name = "a/b"', r"sweep\.name should match pattern"),
        ('name = "s"', 'name = "teachers"', r"sweep\.name must not be 'teachers'"),
        ('[sweep]\nname = "s"', "", r"sweep is required"),
        ("[grid]", "[gird]", r"gird|grid"),
        ("[grid]", "[teacher]\nlr = 'x'\n[grid]", r"teacher\.lr should be a valid number, but got 'x'"),
        ("[grid]", "[teacher]\nlrr = 1\n[grid]", r"unknown key 'lrr' at teacher\.lrr"),
        (
            "[grid]",
            "[teacher]\nmethod = 'kd'\n[grid]",
            r"^teacher\.method must be a .* needs no teacher.* but got 'kd'\.$",
        ),
        (
            "[grid]",
            "[teacher]\nmethod = 'lss'\n[grid]",
            r"^unknown method 'lss' at teacher\.method\. Did you mean 'ls'",
        ),
        ("[grid]", "[teacher]\nmethod = { epsilon = 0.1 }\n[grid]", r"^teacher\.method\.name must be the name of"),
        ("[grid]", "[teacher]\nmethod = { name = 'ls', epsilon = 2.0 }\n[grid]", r"^ls\.epsilon should be less than 1"),
        ("[grid]", "[teacher]\nmethod = 3\n[grid]", r"^teacher\.method should be a valid string, but got 3"),
        ("[grid]", "[run]\ngpus = 0.3\n[grid]", r"^run\.gpus must be a whole number or 1/n, but got 0\.3"),
        ("[grid]", "[run]\ngpus = 1.5\n[grid]", r"^run\.gpus must be a whole number or 1/n, but got 1\.5"),
        ("[grid]", "[run]\nresults = ''\n[grid]", r"^run\.results should have at least 1 character"),
        ('["vanilla", "kd"]', '"kd"', r"^grid\.method should be a valid (list|array), but got 'kd'"),
        ('["vanilla", "kd"]', "[1]", r"^grid\.method\[0\] should be a valid string, but got 1"),
        ('["vanilla", "kd"]', "[{ tau = 1.0 }]", r"^grid\.method\[0\]\.name must be the name of a method"),
        ('["vanilla", "kd"]', '["kd", { name = "kd" }]', r"^two cells of the grid are one trial: pair = .*; and pair"),
        ('["vanilla", "kd"]', '["kd", { name = "kd", tau = 4.0 }]', r"^two cells of the grid are one trial"),
        ("seed = [1]", "seed = [1]\nlr = [0.1, 0.1]", r"^grid\.lr must not repeat a value"),
        ("seed = [1]", "seed = [1]\n[grid.kd]\ntau = [1.0, 1.0]", r"^grid\.kd\.tau must not repeat a value"),
        ("seed = [1]", "seed = [1]\nkd = 3", r"^grid\.kd must be a table of the method's parameters, but got 3\."),
        ("seed = [1]", "seed = [1]\n[grid.kd]\n", r"^grid\.kd must be a table of the method's parameters, but got"),
        ('name = "s"', "name = 2024-01-01", r"^dates and times are no values here"),
        ("[grid]", "[run]\ncpus = 0\n[grid]", r"run\.cpus should be greater than or equal to 1, but got 0"),
        ("[grid]", "[run]\ncache_gb = -1\n[grid]", r"^run\.cache_gb should be greater than or equal to 0, but got -1"),
        ("[grid]", "[run]\ncache_gb = '20'\n[grid]", r"^run\.cache_gb should be a valid number, but got '20'\."),
        ("[grid]", "[run]\ncache_gb = inf\n[grid]", r"^run\.cache_gb should be a finite number, but got inf\."),
        ("[grid]", "[run]\nprice = 0\n[grid]", r"^run\.price should be greater than 0, but got 0"),
        ("[grid]", "[run]\nprice = nan\n[grid]", r"^run\.price should be a finite number, but got nan\."),
        ("[grid]", "[run]\nprice = '2 $'\n[grid]", r"^run\.price should be a valid number, but got '2 \$'\."),
        ("[grid]", "[run]\nprices = 2\n[grid]", r"^unknown key 'prices' at run\.prices\. Did you mean 'price'\?"),
        ("[sweep]", "[sweep", r"is not TOML"),
    ],
)
def test_bad_input_names_rule_key_and_value(old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match=message):
        plan_of(GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("when = { method = 'cid' }\nset = { lr = 0.1 }", r"override\[0\]\.when must match a trial, but got"),
        ("set = {}", r"override\[0\]\.set "),
        ("when = { metod = 'kd' }\nset = { lr = 0.1 }", r"unknown axis 'metod' at override\[0\]\.when\. Did you mean"),
        ("when = { method = 'kd' }\nset = { alhpa = 0.1 }", r"unknown key 'alhpa' at override\[0\]\.set"),
        ("when = { method = 'kd' }\nset = { alpha = -1.0 }", r"kd\.alpha should be greater than or equal to 0"),
        ("when = { method = 'kd' }\nset = { lr = -1.0 }", r"train\.lr should be greater than 0, but got -1"),
        (
            "when = { method = 'kd' }\nset = { tau = 1.0 }\n[grid.kd]\ntau = [2.0]",
            r"override\[0\]\.set must not set what the grid says, but sets tau",
        ),
        ("set = { alpha = 1.0 }", r"unknown key 'alpha' at override\[0\]\.set.*method = vanilla"),
    ],
)
def test_bad_override_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(f"{GOOD}[[override]]\n{override}\n")


def test_missing_spec_file_is_named(cli):
    ended = cli("plan", "absent.toml")
    assert (ended.code, ended.err) == (2, "error: cannot read the spec absent.toml: No such file or directory.\n")
    assert ended.out == ""


def test_spec_that_is_no_text_is_named(cli, tmp_path):
    (tmp_path / "spec.toml").write_bytes(b"\xff\xfe")
    assert cli("plan", tmp_path / "spec.toml").err.endswith("spec.toml: it is not UTF-8 text.\n")
    assert "Is a directory" in cli("plan", tmp_path).err


def test_entry_must_not_give_what_is_an_axis():
    grid = GOOD.replace('"kd"]', '{ name = "kd", tau = 4.0 }]') + "[grid.kd]\ntau = [2.0]\n"
    with pytest.raises(ConfigError, match=r"^grid\.method\[1\] must not give what is an axis in \[grid\.kd\]: tau"):
        plan_of(grid)


def test_cites_is_printed_as_it_is(cli, tmp_path):
    (tmp_path / "spec.toml").write_text(GOOD.replace('name = "s"', 'name = "s"\ncites = "[red] x [/b]"'))
    assert "([red] x [/b])" in cli("plan", tmp_path / "spec.toml", "--results", tmp_path).out
