"""Overlays and scripts of docs/scale.md run as they stand, with two CPU processes; SLURM's commands are stand-ins."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from sae_lightning import load_sae
from tests.helpers.processes import free_port
from tests.helpers.runs import QUIET, ROOT, process_environment, run_cli

SMALL = ["--model.d_sae", "16", "--model.n_init_samples", "64", "--data.n_per_concept", "2000"]
SMALL += [
    "--data.n_val_per_concept",
    "20",
    "--data.n_test_per_concept",
    "20",
    "--data.batch_size",
    "16",
    "--figures.on_validation",
    "false",
]
SMALL += ["--receptive_fields.max_saes", "0", *QUIET, "--trainer.accelerator", "cpu"]
SPADE = "configs/separability/spade.yaml"
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 "$@" &
    echo $! >> "$STAND_IN/pids"
done
wait -n && wait -n
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$STAND_IN/requeued"
kill -TERM $(cat "$STAND_IN/pids")
"""


def script(word, folder):
    """The page's script that holds a word, as a file."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    path = folder / "script.sh"
    path.write_text(found)
    return path


def environment(folder, **variables):
    commands = os.pathsep.join([str(folder), os.path.dirname(sys.executable), os.environ["PATH"]])
    return {**process_environment(), "PATH": commands, "RUN": str(folder / "run"), **variables}


def outcome(folder):
    return json.loads((folder / "run" / "results.json").read_text())["fit"]


def steps(n):
    return ["--trainer.max_steps", str(n), "--trainer.val_check_interval", str(n)]


OVERLAYS = {
    "ddp": ([], 2),
    "sharded": ([], 1),  # both processes see the same batch
    "fsdp": (["--trainer.strategy.data_parallel_size", "2"], 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "sharded", "fsdp"])
def test_overlays_spread_a_run_over_two_processes_and_leave_one_checkpoint(name, tmp_path):
    further, batches = OVERLAYS[name]
    command = [sys.executable, "-m", "sae_lightning", "fit", "-c", SPADE, "-c", f"configs/trainer/{name}.yaml"]
    command += [*SMALL, "--trainer.devices", "2", *further, *steps(10), "--run_dir", str(tmp_path / "run")]
    given = environment(tmp_path)
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    assert outcome(tmp_path)["processes"] == 2
    assert outcome(tmp_path)["samples_seen"] == 10 * batches * 16
    sae = load_sae(tmp_path / "run" / "checkpoints" / "last.ckpt")  # on one process
    assert sae.sae.encoder.weight.shape == (16, 2)
    assert not torch.equal(sae.sae.encoder.weight, torch.zeros(16, 2))


@pytest.mark.slow
def test_torchrun_starts_two_processes_and_goes_on_where_a_run_stood(tmp_path):
    path = script("exec torchrun", tmp_path)
    for n in (10, 20):
        given = environment(tmp_path, NODES="1", NODE_RANK="0", GPUS="2", MASTER="127.0.0.1", PORT=str(free_port()))
        command = ["bash", path, SPADE, *SMALL, *steps(n)]
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False, timeout=150)
        assert done.returncode == 0, done.stderr[-3000:]
        assert outcome(tmp_path)["processes"] == 2
        assert outcome(tmp_path)["samples_seen"] == n * 2 * 16


@pytest.mark.slow
def test_slurm_queues_a_run_again_that_goes_on_with_its_last_checkpoint(tmp_path):
    path = script("#SBATCH", tmp_path)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": "1234", "JOB_NAME": "sae", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1"}
    slurm = {f"SLURM_{key}": value for key, value in {**slurm, "NODELIST": "localhost"}.items()}
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"

    def start(n):
        given = environment(tmp_path, **slurm, STAND_IN=str(tmp_path), MASTER_PORT=str(free_port()))
        command = ["bash", path, SPADE, *SMALL, *steps(n), "--checkpoint.every_n_steps", "20"]
        with (tmp_path / "log").open("a") as log:
            return subprocess.Popen(command, cwd=ROOT, env=given, stdout=log, stderr=log)

    running = start(10**6)
    end = time.monotonic() + 100
    while not last.exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    running.send_signal(signal.SIGUSR1)
    running.wait(60)
    assert (tmp_path / "requeued").read_text() == "requeue 1234\n", (tmp_path / "log").read_text()[-3000:]
    stood = int(re.search(r"\d+", last.readlink().name)[0])
    assert stood >= 20

    assert start(stood + 20).wait(150) == 0, (tmp_path / "log").read_text()[-3000:]
    assert outcome(tmp_path)["processes"] == 2
    assert outcome(tmp_path)["samples_seen"] == (stood + 20) * 2 * 16


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "sae"}


@pytest.mark.parametrize(("variables", "arguments"), [(TORCHRUN, []), (SLURM, []), ({}, ["--trainer.num_nodes", 2])])
def test_processes_that_start_by_themselves_need_a_folder(variables, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ended = run_cli("fit", "--model", "TopKSAE", "--model.d_sae", 8, "--data", "SeparabilityDataModule", *arguments)
    assert ended.code == 2
    assert "--run_dir must be given where torchrun, SLURM or several nodes start the processes" in ended.err
    assert not any(tmp_path.iterdir())
