"""Every shipped config parses, alone or with its overlays, and says what its comments promise."""

import functools
import re

import pytest
import yaml

from tests.conftest import CONFIGS, EXPERIMENTS, ROOT, run_cli

SEPARABILITY = sorted((CONFIGS / "separability").glob("*.yaml"))
OVERLAYS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name in ("debug", "trainer"))
ALL = sorted(CONFIGS.rglob("*.yaml"))


def ident(path):
    return str(path.relative_to(CONFIGS).with_suffix(""))


@functools.cache
def parsed(*files):
    """What `fit` makes of config files, later ones over earlier ones."""
    outcome = run_cli("fit", *[part for file in files for part in ("-c", file)], "--print_config")
    assert outcome.code == 0, outcome.err[-2000:]
    return yaml.safe_load(outcome.out)


def saes(config):
    """The described SAEs of a config, by name."""
    model = config["model"]
    return model["init_args"]["members"] if model["class_path"].endswith("Comparison") else {"": model}


def test_every_config_is_an_experiment_or_an_overlay():
    assert {path.stem for path in SEPARABILITY} == {*EXPERIMENTS, "figure"}
    assert set(ALL) == {*SEPARABILITY, *OVERLAYS}
    assert len(OVERLAYS) == 6


@pytest.mark.parametrize("path", SEPARABILITY, ids=ident)
def test_experiments_parse_and_are_consistent(path):
    config = parsed(path)
    trainer = config["trainer"]
    assert config["run_dir"] == f"runs/separability/{path.stem}"
    assert config["num_threads"] == 1
    assert config["data"]["class_path"].endswith("SeparabilityDataModule")
    assert trainer["max_epochs"] == -1
    assert trainer["check_val_every_n_epoch"] is None
    for name, sae in saes(config).items():
        args = sae["init_args"]
        assert args["d_sae"] == 128, name
        assert args["optimizer"]["init_args"]["lr"] == 1e-2, name
        assert args["lr_scheduler"]["init_args"]["T_max"] == trainer["max_steps"], name


@pytest.mark.parametrize("name", EXPERIMENTS[:4])
def test_single_experiments_train_the_class_of_their_name(name):
    classes = {"spade": "SpaDE", "relu": "ReLUSAE", "jumprelu": "JumpReLUSAE", "topk": "TopKSAE"}
    assert parsed(CONFIGS / "separability" / f"{name}.yaml")["model"]["class_path"].endswith(f".{classes[name]}")


def test_the_figure_has_ten_strengths_of_each_class():
    members = saes(parsed(CONFIGS / "separability" / "figure.yaml"))
    strengths = {}
    for name, sae in members.items():
        args = sae["init_args"]
        family = sae["class_path"].rpartition(".")[2]
        strength = args["k"] if family == "TopKSAE" else args["gamma"]
        strengths.setdefault(family, []).append(strength)
        assert float(name.partition("-")[2].replace("p", ".")) == pytest.approx(strength), name
        assert args["init"] == "normal", name
        assert args.get("lambda_init", args.get("pre_code_scale")) == 0.25, name
    assert {family: len(set(values)) for family, values in strengths.items()} == {
        "SpaDE": 10,
        "ReLUSAE": 10,
        "JumpReLUSAE": 10,
        "TopKSAE": 10,
    }


@pytest.mark.parametrize("overlay", OVERLAYS, ids=ident)
@pytest.mark.parametrize("experiment", ["spade", "compare"])
def test_overlays_change_what_they_name_and_nothing_else(experiment, overlay):
    base = CONFIGS / "separability" / f"{experiment}.yaml"
    before, after, said = parsed(base), parsed(base, overlay), yaml.safe_load(overlay.read_text())

    def check(before, after, said, path):
        for key in before.keys() | after.keys():
            here = f"{path}.{key}"
            if key not in said:
                assert after[key] == before[key], here
            elif isinstance(said[key], dict):
                check(before[key], after[key], said[key], here)
            else:
                assert after[key] == said[key], here

    check(before, after, said, "")


@pytest.mark.parametrize("path", ALL, ids=ident)
def test_comments_show_commands_whose_files_exist(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header
    commands = [line for line in header if "sae-lightning" in line]
    assert commands
    for line in commands:
        for file in re.findall(r"-c (\S+)", line):
            assert (ROOT / file).is_file(), f"{path.name}: {file}"
        assert f"configs/{ident(path)}.yaml" in line
