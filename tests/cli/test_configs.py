"""Every shipped config parses, alone or with its overlays, and says what its comments promise."""

import functools
import re

import pytest
import yaml

from sae_lightning.data import Grammar
from sae_lightning.data.formal_language.activations import Concepts
from tests.helpers.runs import CONFIGS, EXPERIMENTS, ROOT, run_cli

SEPARABILITY = sorted((CONFIGS / "separability").glob("*.yaml"))
HETEROGENEITY = sorted((CONFIGS / "heterogeneity").glob("*.yaml"))
FORMAL = sorted((CONFIGS / "formal_language").glob("*.yaml"))
HARVESTS = sorted(CONFIGS.rglob("*harvest.yaml"))
VISION = sorted(set((CONFIGS / "vision").glob("*.yaml")) - set(HARVESTS))
LANGUAGE = sorted(set((CONFIGS / "language").glob("*.yaml")) - set(HARVESTS))
LANGUAGES = ("dyck", "expressions")  # overlays of the comparison
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
    assert {path.stem for path in SEPARABILITY} == {*EXPERIMENTS, "figure", "grid"}
    assert {path.stem for path in HETEROGENEITY} == {*EXPERIMENTS, "figure", "short", "defaults", "grid"}
    assert {path.stem for path in FORMAL} == {*EXPERIMENTS, "gpt", "gpt-figure", "figure", *LANGUAGES}
    assert {path.stem for path in VISION} == {"vit", "compare", "dinov2"}
    assert {path.stem for path in LANGUAGE} == {"compare", "pythia"}
    assert {ident(path) for path in HARVESTS} == {
        *("language/harvest", "language/pythia-harvest", "vision/harvest", "vision/dinov2-harvest")
    }
    assert set(ALL) == {*SEPARABILITY, *HETEROGENEITY, *FORMAL, *VISION, *LANGUAGE, *HARVESTS, *OVERLAYS}
    assert {ident(path) for path in OVERLAYS} == {
        *(f"trainer/{name}" for name in ("cpu", "gpu", "ddp", "fsdp", "sharded", "torchrun", "slurm", "throughput")),
        *("debug/fast", "debug/profiler"),
    }


@pytest.mark.parametrize("path", [*SEPARABILITY, *HETEROGENEITY], ids=ident)
def test_experiments_parse_and_are_consistent(path):
    config = parsed(path)
    trainer = config["trainer"]
    experiment = path.parent.name
    d_sae = {"separability": 128, "heterogeneity": 512}[experiment]
    assert config["run_dir"] == f"runs/{experiment}/{path.stem}"
    side_by_side = config["model"]["init_args"].get("processes") == 2
    assert side_by_side == (path.stem in ("figure", "short", "defaults"))
    assert config["num_threads"] == (1 if experiment == "separability" and not side_by_side else None)
    assert config["data"]["class_path"].endswith(f".{experiment.capitalize()}DataModule")
    assert config["data"]["init_args"]["n_test_per_concept"] == 1000
    assert trainer["max_epochs"] == -1
    assert trainer["check_val_every_n_epoch"] is None
    for name, sae in saes(config).items():
        args = sae["init_args"]
        assert args["d_sae"] == d_sae, name
        assert args["optimizer"]["init_args"]["lr"] == 1e-2, name
        assert args["lr_scheduler"]["init_args"]["T_max"] == trainer["max_steps"], name


@pytest.mark.parametrize("path", HARVESTS, ids=ident)
def test_harvests_parse_and_write_what_an_experiment_reads(path):
    outcome = run_cli("harvest", "-c", path, "--print_config")
    assert outcome.code == 0, outcome.err[-2000:]
    harvest = yaml.safe_load(outcome.out)
    name = path.stem.removesuffix("harvest").removesuffix("-") or "compare"
    data = parsed(path.with_name(f"{name}.yaml"))["data"]["init_args"]
    assert data["cache"] == harvest["output"]
    assert data["layer"] in harvest["layers"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_formal_language_experiments_read_the_language_model_and_average_as_the_paper_does(name):
    config = parsed(CONFIGS / "formal_language" / f"{name}.yaml")
    assert config["run_dir"] == f"runs/formal_language/{name}"
    assert config["data"]["init_args"]["checkpoint"] == "runs/formal_language/gpt/checkpoints/last.ckpt"
    assert list(config["data"]["init_args"]["concepts"]) == ["noun", "verb", "adverb", "adjective", "conjunction"]
    assert config["recovery"]["top_n"] == 15
    assert config["trainer"]["max_steps"] == 2500
    assert {sae["init_args"]["d_sae"] for sae in saes(config).values()} == {256}


def test_single_formal_language_experiments_are_those_of_the_comparison():
    compared = saes(parsed(CONFIGS / "formal_language" / "compare.yaml"))
    for name, member in compared.items():
        (alone,) = saes(parsed(CONFIGS / "formal_language" / f"{name}.yaml")).values()
        assert alone["init_args"] == member["init_args"], name
        assert alone["class_path"].rpartition(".")[2] == member["class_path"].rpartition(".")[2]


def test_the_language_models_schedule_ends_with_its_steps():
    config = parsed(CONFIGS / "formal_language" / "gpt.yaml")
    assert config["run_dir"] == "runs/formal_language/gpt"
    schedule = config["model"]["init_args"]["lr_scheduler"]
    assert schedule["init_args"]["total_steps"] == config["trainer"]["max_steps"]
    assert parsed(CONFIGS / "separability" / "spade.yaml")["run_dir"] != config["run_dir"]


def test_the_vision_models_schedule_ends_with_its_steps():
    config = parsed(CONFIGS / "vision" / "vit.yaml")
    assert config["run_dir"] == "runs/vision/vit"
    schedule = config["model"]["init_args"]["lr_scheduler"]
    assert schedule["init_args"]["total_steps"] == config["trainer"]["max_steps"]
    assert len(config["data"]["init_args"]["concept_names"]) == 10


def test_the_papers_language_model_is_an_overlay():
    config = parsed(*(CONFIGS / "formal_language" / f"{name}.yaml" for name in ("gpt", "gpt-figure")))
    assert config["trainer"]["max_steps"] == 70_000
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-4
    assert config["model"]["init_args"]["lr_scheduler"]["class_path"].endswith("LinearLR")


@pytest.mark.parametrize("name", LANGUAGES)
def test_other_languages_have_concepts_and_a_model_of_their_own(name):
    config = parsed(*(CONFIGS / "formal_language" / f"{file}.yaml" for file in ("compare", name)))
    base = parsed(CONFIGS / "formal_language" / "compare.yaml")
    assert config["model"] == base["model"]
    assert config["trainer"] == base["trainer"]
    data = config["data"]["init_args"]
    assert data["checkpoint"] == f"runs/formal_language/gpt-{name}/checkpoints/last.ckpt"
    grammar = Grammar.from_file(CONFIGS / "formal_language" / "grammars" / f"{name}.pcfg")
    names = Concepts(grammar, data["concepts"], data["nesting"] or [], data["n_levels"]).names
    assert len(names) == (5 if name == "dyck" else 4)


def test_the_formal_language_figure_has_the_papers_strengths_and_setting():
    config = parsed(CONFIGS / "formal_language" / "figure.yaml")
    assert sweep(saes(config)) == {
        "SpaDE": [0.001, 0.01, 0.05, 0.1, 1, 4],
        "ReLUSAE": [0.01, 1, 4],
        "JumpReLUSAE": [0.001, 0.05, 0.1, 4],
        "TopKSAE": [4, 8, 16, 64],
    }
    assert config["trainer"]["max_steps"] == 1_000_000
    assert config["data"]["init_args"]["batch_size"] == 1024
    for member, sae in saes(config).items():
        args = sae["init_args"]
        assert args["d_sae"] == 256, member
        assert args["init"] == "normal", member
        assert args.get("lambda_init", args.get("pre_code_scale")) in (1 / (256 * 128), 1 / (4 * 128)), member
        assert ("k" in args) == (args["gamma"] == 0), member


@pytest.mark.parametrize("experiment", ["separability", "heterogeneity"])
@pytest.mark.parametrize("name", EXPERIMENTS[:4])
def test_single_experiments_train_the_class_of_their_name(name, experiment):
    classes = {"spade": "SpaDE", "relu": "ReLUSAE", "jumprelu": "JumpReLUSAE", "topk": "TopKSAE"}
    assert parsed(CONFIGS / experiment / f"{name}.yaml")["model"]["class_path"].endswith(f".{classes[name]}")


def sweep(members):
    """Strengths of each class of SAE, whose members' names tell them."""
    strengths = {}
    for name, sae in members.items():
        args = sae["init_args"]
        family = sae["class_path"].rpartition(".")[2]
        strength = args["k"] if family == "TopKSAE" else args["gamma"]
        strengths.setdefault(family, []).append(strength)
        assert float(name.partition("-")[2].replace("p", ".")) == pytest.approx(strength), name
    return strengths


def test_the_figure_has_ten_strengths_of_each_class():
    members = saes(parsed(CONFIGS / "separability" / "figure.yaml"))
    strengths = sweep(members)
    for name, sae in members.items():
        args = sae["init_args"]
        assert args["init"] == "normal", name
        assert args.get("lambda_init", args.get("pre_code_scale")) == 0.25, name
    assert {family: len(set(values)) for family, values in strengths.items()} == {
        "SpaDE": 10,
        "ReLUSAE": 10,
        "JumpReLUSAE": 10,
        "TopKSAE": 10,
    }


@pytest.mark.parametrize(("name", "steps"), [("figure", 10_938), ("short", 2_000)])
def test_the_heterogeneity_figure_has_the_papers_strengths_and_setting(name, steps):
    config = parsed(CONFIGS / "heterogeneity" / f"{name}.yaml")
    assert sweep(saes(config)) == {
        "SpaDE": [0.001, 0.01, 0.1, 1, 3, 5, 10],
        "ReLUSAE": [0.001, 0.01, 0.05, 0.1, 0.5, 1, 5],
        "JumpReLUSAE": [0.001, 0.01, 0.025, 0.05, 0.075, 0.1, 1],
        "TopKSAE": [4, 8, 16, 32, 64, 128, 256],
    }
    assert config["trainer"]["max_steps"] == steps
    assert config["trainer"]["limit_val_batches"] == 0
    data = config["data"]["init_args"]
    assert (data["d_in"], data["dims"], data["batch_size"]) == (128, [6, 14, 30, 62, 126], 2048)
    for member, sae in saes(config).items():
        args = sae["init_args"]
        assert args["init"] == "normal", member
        assert args.get("lambda_init", args.get("pre_code_scale")) == 1 / 256, member
        assert "k" not in args or args["gamma"] == 1, member


def test_the_defaults_of_heterogeneity_differ_from_short_in_initial_values_only():
    short, defaults = (parsed(CONFIGS / "heterogeneity" / f"{name}.yaml") for name in ("short", "defaults"))
    assert short["trainer"] == defaults["trainer"]
    assert short["data"] == defaults["data"]
    assert sweep(saes(defaults))["SpaDE"] == sweep(saes(short))["SpaDE"]
    changes = {
        "spade": {"init", "lambda_init", "l0_init"},
        "relu": {"init", "pre_code_scale"},
        "jumprelu": {"init", "pre_code_scale", "threshold_init", "bandwidth"},
        "topk": {"init", "pre_code_scale", "decoder_bias", "subtract_decoder_bias"},
    }
    common = saes(short).keys() & saes(defaults).keys()
    assert {name.partition("-")[0] for name in common} == set(changes)
    for name in common:
        before, after = (saes(config)[name]["init_args"] for config in (short, defaults))
        assert {key for key in before if before[key] != after[key]} == changes[name.partition("-")[0]], name


@pytest.mark.parametrize("experiment", ["separability", "heterogeneity"])
def test_the_grid_has_every_encoder_with_every_projection(experiment):
    members = saes(parsed(CONFIGS / experiment / "grid.yaml"))
    classes = {"affine": "Affine", "distance": "SquaredDistance"}
    classes |= {"orthant": "Orthant", "jump": "Jump", "ksparse": "KSparse", "simplex": "Simplex"}
    encoders, projections = ("affine", "distance"), ("orthant", "jump", "ksparse", "simplex")
    assert set(members) == {f"{encoder}_{projection}" for encoder in encoders for projection in projections}
    for name, sae in members.items():
        for part, word in zip(("encoder", "projection"), name.split("_"), strict=True):
            assert sae["init_args"][part]["class_path"] == f"sae_lightning.nn.{classes[word]}", name
    # a row of the grid differs in the encoder, and in the numbers that it needs
    numbers = {"encoder", "l0_init", "gamma"}
    for projection in projections:
        affine, distance = (members[f"{encoder}_{projection}"]["init_args"] for encoder in encoders)
        differ = {key for key in affine if affine[key] != distance[key]}
        assert differ - numbers == ({"regularizer"} if projection == "simplex" else set()) | (
            {"projection"} if (experiment, projection) == ("heterogeneity", "jump") else set()  # thresholds
        ), projection


@pytest.mark.parametrize("overlay", OVERLAYS, ids=ident)
@pytest.mark.parametrize("experiment", ["spade", "compare"])
def test_overlays_change_what_they_name_and_nothing_else(experiment, overlay):
    base = CONFIGS / "separability" / f"{experiment}.yaml"
    before, after, said = parsed(base), parsed(base, overlay), yaml.safe_load(overlay.read_text())

    def check(before, after, said, path):
        for key in before.keys() | after.keys():
            here = f"{path}.{key}"
            if f"{key}+" in said:
                added = said[f"{key}+"]
                assert [*(before[key] or []), added] == after[key], here
            elif key not in said:
                assert after[key] == before[key], here
            elif isinstance(said[key], dict) and "class_path" in said[key]:
                assert after[key]["class_path"] == said[key]["class_path"], here
                assert said[key]["init_args"].items() <= after[key]["init_args"].items(), here
            elif isinstance(said[key], dict):
                check(before[key], after[key], said[key], here)
            else:
                assert after[key] == said[key], here

    check(before, after, said, "")


def test_overlays_combine():
    names = ("ddp", "throughput")
    config = parsed(CONFIGS / "separability" / "spade.yaml", *(CONFIGS / "trainer" / f"{name}.yaml" for name in names))
    assert config["trainer"]["strategy"] == "ddp"
    assert [callback["class_path"] for callback in config["trainer"]["callbacks"]] == [
        "sae_lightning.callbacks.Throughput"
    ]


@pytest.mark.parametrize("path", ALL, ids=ident)
def test_comments_show_commands_whose_files_exist(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header
    commands = [line for line in header if "sae-lightning" in line]
    assert commands
    for line in commands:
        for file in re.findall(r"-c (\S+)", line):
            assert (ROOT / file).is_file(), f"{path.name}: {file}"
        before = ("configs/formal_language/gpt.yaml", "harvest.yaml", "configs/vision/vit.yaml")  # what comes first
        assert f"configs/{ident(path)}.yaml" in line or any(file in line for file in before)
