"""Every file that a run writes appears as a whole: in the source, in what commands do, and wherever they are killed."""

import ast
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from sae_lightning.cli.commands.diagnose import claimed
from sae_lightning.modules.loading import read_checkpoint
from sae_lightning.run.files import prepare_folder, remove_leftovers, replacing, temporary_of
from sae_lightning.run.folder import LOCK
from tests.helpers.processes import PROCESSES, redirect
from tests.helpers.runs import ROOT, fast, process_environment, run_cli

PACKAGE = ROOT / "sae_lightning"

# ---------------------------------------------------------------------- the source

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
WRITERS = {  # what writes, moves or links files, by the last part of its name
    *(
        "dump",
        "save",
        "savez",
        "savez_compressed",
        "savetxt",
        "savefig",
        "save_file",
        "imsave",
        "write_image",
        "print_",
    ),
    *("write_text", "write_bytes", "tofile", "to_csv", "to_json", "to_parquet", "save_pretrained", "save_to_disk"),
    *("fdopen", "mkstemp", "NamedTemporaryFile", "memmap", "FileIO", "SummaryWriter", "BinaryWriter", "FileWriter"),
    *("copy2", "copyfile", "copyfileobj", "copytree", "move", "rename", "renames", "replace", "touch", "symlink"),
    *("link", "symlink_to", "hardlink_to", "urlretrieve", "save_checkpoint"),
}
EXCEPTIONS = {
    ("run/loggers.py", "SummaryWriter"): "TensorBoard's events are appended, each with its checksum",
    ("cli/commands/diagnose.py", "SummaryWriter"): "as above",
    ("callbacks/checkpoint.py", "logger.save"): "loggers append what they hold",
    ("callbacks/checkpoint.py", "trainer.save_checkpoint"): "by AtomicCheckpointIO, or as the user chose",
    ("callbacks/checkpoint_files.py", "super().save_checkpoint"): "Lightning writes to remote file systems",
    ("data/activations/blocks.py", "BinaryWriter"): "litdata writes into a work folder",
    ("data/activations/cache.py", "os.replace"): "moves files, on the disk by now, out of the work folder",
    ("report/excerpts.py", "small.save"): "writes to memory",
    ("callbacks/nonfinite.py", "save"): "returns bytes",
    ("callbacks/codes.py", "save"): "returns bytes",
    ("modules/base.py", "save"): "returns bytes",
    ("callbacks/results.py", "path.replace"): "keeps a damaged file under another name",
    ("run/folder.py", "os.open"): "the lock, whose content is for messages only",
    ("run/folder.py", "path.rename"): "sets an earlier run aside, and back",
    ("cli/__init__.py", "os.open"): "opens the null device",
    ("cli/commands/configs.py", "shutil.copytree"): "copies to a folder of the user's",
    ("data/activations/stored.py", "own.write_bytes"): "writes into a temporary folder that only the reader sees",
    ("data/activations/blocks.py", "open"): "opens a file of the work folder for fsync",
}
ATOMIC = "run/files.py"


def last(text):
    return text.rpartition(".")[2]


def is_writing(call):
    """Whether a call may write a file whose name it is given."""
    text = ast.unparse(call.func)
    n = len(call.args) + len(call.keywords)
    if text == "os.open":
        return True
    if last(text) == "open":
        position = (
            1 if text in ("open", "io.open", "gzip.open", "bz2.open", "lzma.open", "Image.open") else 0
        )  # else a path's method
        modes = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg in ("mode", None))]
        return bool(modes) and not (isinstance(modes[0], ast.Constant) and not set(str(modes[0].value)) & set("wax+"))
    if last(text) == "replace" and text != "os.replace":
        return n == 1  # of a path; that of a text takes two arguments
    if last(text) == "dump":
        return text.split(".")[0] in ("json", "pickle", "yaml", "np", "torch", "joblib")
    return last(text) in WRITERS


def writers(source):
    """Calls of a module that may write a file by its name, and not to the file that `replacing` has opened."""
    found = []

    def visit(node, opened):
        if isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and last(ast.unparse(call.func)) == "replacing" and item.optional_vars:
                    opened = opened | {ast.unparse(item.optional_vars)}
        if isinstance(node, ast.Call) and is_writing(node):
            arguments = {ast.unparse(argument) for argument in (*node.args, *(k.value for k in node.keywords))}
            if not arguments & opened:
                found.append(ast.unparse(node.func))
        for child in ast.iter_child_nodes(node):
            visit(child, opened)

    visit(ast.parse(source), frozenset())
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("open(p, 'w')", ["open"]),
        ("open(p, mode='rb+')", ["open"]),
        ("open(p, mode)", ["open"]),
        ("path.open('a')", ["path.open"]),
        ("path.open(mode=m)", ["path.open"]),
        ("open(p); open(p, 'rb'); path.open(newline=''); path.open('rb')", []),
        ("os.open(p, flags)", ["os.open"]),
        ("path.write_text(t); path.with_name(n).write_bytes(b)", ["path.write_text", "path.with_name(n).write_bytes"]),
        ("figure.savefig(path, dpi=3)", ["figure.savefig"]),
        ("with replacing(path) as file:\n    figure.savefig(file)\n    torch.save(x, f=file)", []),
        ("with replacing(path) as file:\n    figure.savefig(path)", ["figure.savefig"]),
        ("with replacing(path) as file:\n    pass\nfigure.savefig(file)", ["figure.savefig"]),
        ("with open(path, 'w') as file:\n    json.dump(x, file)", ["open", "json.dump"]),
        ("from safetensors.torch import save_file\nsave_file(t, path)", ["save_file"]),
        ("np.save(path, x); torch.save(x, path); shutil.copyfile(a, b)", ["np.save", "torch.save", "shutil.copyfile"]),
        ("text.replace('a', 'b'); sae._replace(a=1); parser.dump(config)", []),
        ("path.replace(other); os.replace(a, b)", ["path.replace", "os.replace"]),
    ],
)
def test_what_writes_is_seen_in_source(source, expected):
    assert writers(source) == expected


@pytest.mark.parametrize("name", FILES)
def test_no_module_writes_a_file_but_through_replacing(name):
    if name == ATOMIC:
        return
    found = [text for text in writers((PACKAGE / name).read_text()) if (name, text) not in EXCEPTIONS]
    assert not found, f"{name} writes by {found}: use sae_lightning.run.files.replacing"


def test_every_exception_is_needed():
    found = {(name, text) for name in FILES for text in writers((PACKAGE / name).read_text())}
    assert EXCEPTIONS.keys() <= found


# ---------------------------------------------------------------------- what commands do

APPENDED = ("events.out.tfevents.", "metrics.csv")


def is_appended(path):
    """Also the lock: it is no file that anyone reads, and a kill may leave it."""
    return Path(path).name.startswith(APPENDED) or Path(path).name == LOCK


class Watch:
    """Sees every opening for writing, renaming and linking of files below a folder, just before it happens.

    `struck` is called with each; for an opening, what a kill within the writing would leave is on the disk by then.
    """

    def __init__(self, folder, struck):
        self.folder, self.struck = str(folder), struck
        self.seen, self.busy = [], False
        sys.addaudithook(self.note)

    def note(self, event, args):
        if self.busy:
            return
        if event == "open" and isinstance(args[0], str) and isinstance(args[2], int) and args[2] & os.O_ACCMODE:
            names = [args[0]]
        elif event in ("os.rename", "os.symlink", "os.link"):
            names = [os.fspath(name) for name in args[:2]]
        else:
            return
        names = [os.path.abspath(name) for name in names]
        if not names[-1].startswith(self.folder):
            return
        self.busy = True
        self.seen.append((event, *names))
        if event == "open" and args[2] & os.O_TRUNC:
            Path(names[0]).write_bytes(b"half of a file")
        self.struck(len(self.seen))
        self.busy = False


def observed(commands, log, folder, report, snapshots):
    """Run commands in this process, and keep what a kill would leave of the folder at each touch of the disk."""
    redirect(log)
    torch.set_num_threads(1)
    watch = Watch(folder, lambda n: shutil.copytree(folder, Path(snapshots, f"{n:03}"), symlinks=True))
    from sae_lightning.cli import main

    for args in commands:
        main([str(arg) for arg in args])
    Path(report).write_text(json.dumps(watch.seen))


def killed(args, log, folder, kill_at):
    """Run a command in this process, which is killed at a touch of the disk."""
    redirect(log)
    torch.set_num_threads(1)
    Watch(folder, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == kill_at else None)
    from sae_lightning.cli import main

    main([str(arg) for arg in args])


def run_child(target, *args, log):
    process = PROCESSES.Process(target=target, args=args)
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL), log.read_text()[-3000:]
    return process.exitcode == 0


def run_observed(commands, folder, tmp_path):
    log, report = tmp_path / "log", tmp_path / "report"
    assert run_child(observed, commands, log, folder, report, tmp_path / "snapshots", log=log)
    return json.loads(report.read_text())


def check_atomic(folder, seen):
    """Every file got its name by a rename of its temporary file, and no other file was opened for writing."""
    renamed = {entry[2]: entry[1] for entry in seen if entry[0] == "os.rename"}
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    assert len(files) > 5
    for path in files:
        if not is_appended(path):
            assert renamed.get(str(path)) == str(temporary_of(path)), f"{path} was not renamed from its temporary file"
    temporary = {str(temporary_of(Path(path))) for path in renamed}
    opened = {entry[1] for entry in seen if entry[0] == "open" and not is_appended(entry[1])}
    assert opened <= temporary
    assert not list(folder.rglob(".*"))


def check_whole(path):
    """Read a file to its end, by a reader of its format."""
    text = path.read_text() if path.suffix in (".json", ".yaml", ".html", ".md", ".csv") else ""
    match path.suffix:
        case ".png":
            with Image.open(path) as image:
                image.load()
        case ".json":
            assert json.loads(text)
        case ".yaml":
            assert "data" in yaml.safe_load(text)
        case ".html":
            assert text.rstrip().endswith("</html>")
        case ".md":
            assert text.endswith("\n")
            assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
        case ".csv":
            rows = list(csv.reader(text.splitlines()))
            assert len({len(row) for row in rows}) == 1
        case ".safetensors":
            assert load_file(path)
        case ".ckpt":
            read_checkpoint(path)
        case _:
            assert path.name.startswith("events.out.tfevents."), path


def check_all_whole(folder):
    """Every file that has its name is whole; the others, with the names of temporary files, are returned.

    The CSV logger appends to its file; what a kill leaves of its first row is removed by the next command.
    """
    leftovers = []
    for path in folder.rglob("*"):
        if path.name == LOCK:
            continue
        if path.name.startswith("."):
            leftovers.append(path)
        elif path.is_file() and not (path.name == "metrics.csv" and path.read_bytes() == b"half of a file"):
            check_whole(path)
    return leftovers


def arguments(command, name, folder):
    args = [command, *fast(name, folder), "--data.eval_batch_size", 256, "--receptive_fields.resolution", 20]
    return [*args, *([] if command == "fit" else ["--ckpt_path", folder / "checkpoints" / "last.ckpt"])]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was trained, tested and read: its folder, what touched the disk, and the folder before each touch."""
    tmp_path = tmp_path_factory.mktemp("observed")
    folder = tmp_path / "run"
    seen = run_observed(
        [arguments(command, "topk", folder) for command in ("fit", "test", "predict")], folder, tmp_path
    )
    return folder, seen, sorted((tmp_path / "snapshots").iterdir())


def test_every_file_of_a_run_gets_its_name_when_it_is_complete(run):
    folder, seen, _ = run
    check_atomic(folder, seen)
    names = {path.name for path in folder.rglob("*")}
    assert names >= {"config.yaml", "config-test.yaml", "results.json", "results.md", "report.html", "last.ckpt"}
    assert names >= {"codes.safetensors", "metrics.csv"}
    assert len([name for name in names if name.endswith(".png")]) > 3
    check_all_whole(folder)


@pytest.mark.slow
def test_every_file_of_a_comparison_gets_its_name_when_it_is_complete(tmp_path):
    folder = tmp_path / "run"
    commands = [arguments(command, "compare", folder) for command in ("fit", "validate", "test", "predict")]
    check_atomic(folder, run_observed(commands, folder, tmp_path))
    assert (folder / "visibility.json").is_file()
    assert len(list(folder.glob("members/*/codes.safetensors"))) == 4


def test_every_file_of_a_diagnosis_gets_its_name_when_it_is_complete(tmp_path):
    folder = tmp_path / "out"
    args = ["diagnose", "--data", "SeparabilityDataModule", "--data.n_per_concept", 900]
    args += ["--data.n_val_per_concept", 100, "--data.n_test_per_concept", 100]
    args += ["--max_samples", 600, "--n_resamples", 5, "--output", folder, "--num_threads", 1]
    check_atomic(folder, run_observed([args], folder, tmp_path))
    names = {path.name for path in folder.rglob("*")}
    assert names >= {"diagnosis.json", "diagnosis.html", "config.yaml", "bounds.png", "dimension.png"}
    snapshots = sorted((tmp_path / "snapshots").iterdir())
    assert len(snapshots) > 10
    for snapshot in snapshots:  # a kill does not make a folder that nobody may delete
        check_all_whole(snapshot)
        shutil.copy(snapshots[-1] / "diagnosis.html", snapshot / "theirs.html")
        (snapshot / "nested").mkdir()
        (snapshot / "nested" / "diagnosis.json").touch()
        if not (snapshot / "diagnosis.json").exists():
            with pytest.raises(ValueError, match="so it is not deleted"):
                claimed(snapshot, overwrite=True)
        (snapshot / "theirs.html").unlink()
        shutil.rmtree(snapshot / "nested")
        assert list(claimed(snapshot, overwrite=True).iterdir()) == []


# ---------------------------------------------------------------------- kills


def test_wherever_a_run_is_killed_every_file_is_absent_old_or_whole(run):
    _, seen, snapshots = run
    assert len(snapshots) == len(seen) > 40
    with_leftovers = [snapshot for snapshot in snapshots if check_all_whole(snapshot)]
    assert len(with_leftovers) > 20


def test_no_temporary_file_survives_the_next_command(run):
    """Whichever it is: `predict` writes none of the files that were being written."""
    _, seen, snapshots = run
    places = {}
    for snapshot, entry in zip(snapshots, seen, strict=True):
        leftovers = check_all_whole(snapshot)
        if leftovers and entry[0] == "os.rename" and (snapshot / "checkpoints" / "last.ckpt").exists():
            places[leftovers[0].parent.relative_to(snapshot)] = snapshot
    assert places.keys() >= {Path("."), Path("figures/test")}
    for snapshot in (places[Path(".")], places[Path("figures/test")]):
        assert run_cli(*arguments("predict", "topk", snapshot)).code == 0
        assert check_all_whole(snapshot) == []


def kill_test(run, tmp_path, kill_at):
    """Test the trained run, and kill it at a touch of the disk; False if it ended before."""
    shutil.copytree(run[0], tmp_path, symlinks=True, ignore=shutil.ignore_patterns("test", "report.html", "*.md"))
    log = tmp_path.with_suffix(".log")
    ended = run_child(killed, arguments("test", "topk", tmp_path), log, tmp_path, kill_at, log=log)
    assert len(check_all_whole(tmp_path)) <= 1
    return not ended


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [15, 6])
def test_a_test_that_is_killed_and_repeated_is_whole(kill_at, run, tmp_path):
    assert kill_test(run, tmp_path / "run", kill_at)
    assert run_cli(*arguments("test", "topk", tmp_path / "run")).code == 0
    assert check_all_whole(tmp_path / "run") == []
    assert {path.name for path in (tmp_path / "run").rglob("*.png")} == {path.name for path in run[0].rglob("*.png")}


@pytest.mark.slow
def test_a_test_that_is_killed_at_any_touch_of_the_disk_leaves_whole_files(run, tmp_path):
    kills = 0
    while kill_test(run, tmp_path / str(kills), kills + 1):
        kills += 1
    assert kills > 10


# ---------------------------------------------------------------------- the writer itself


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with replacing(path, "w") as file:
            file.write("new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.txt", "old")]


def test_leftovers_are_removed_and_what_a_live_process_writes_is_not(tmp_path):
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    for path in (folder / ".a.json.tmp", folder / "figures" / ".b.png.tmp", folder / "c.tmp", folder / ".d"):
        path.write_text("x")
    code = """
import sys
from pathlib import Path
from sae_lightning.run.files import replacing
with replacing(Path(sys.argv[1], "live.json"), "w") as file:
    print("open", flush=True)
    sys.stdin.readline()
    file.write("{}")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=process_environment(),
    )  # fmt: skip
    assert process.stdout.readline() == "open\n"
    remove_leftovers(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".d", ".live.json.tmp", "c.tmp", "figures"]
    remove_leftovers(folder / "figures", recursive=True)
    remove_leftovers(folder / "nowhere", recursive=True)
    assert list((folder / "figures").iterdir()) == []
    process.communicate("\n")
    assert process.returncode == 0
    assert (folder / "live.json").read_text() == "{}"


def test_a_file_that_a_killed_process_wrote_is_a_leftover(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from sae_lightning.run.files import replacing
with replacing(Path(sys.argv[1], "a.json"), "w") as file:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=ROOT, env=process_environment())
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".a.json.tmp"]
    prepare_folder(tmp_path, "results")
    assert list(tmp_path.iterdir()) == []
