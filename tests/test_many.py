"""One run in two real processes (gloo, on a CPU) is the run of one: samples, updates, folder, stop and resume."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOConfig

from grit_lite import processes
from grit_lite.backends import import_libraries
from grit_lite.backends.plain import PlainBackend
from grit_lite.cli import main
from grit_lite.errors import Elsewhere, ModelError, RecipeError, UsageError
from grit_lite.recipe import Recipe
from grit_lite.run import METRICS, SAMPLES, Follower, Run, read_rows
from grit_lite.tiny.build import save_untrained
from grit_lite.tiny.questions import held_out
from grit_lite.trainer import sampling_arguments, server_explained
from grit_lite.training import lost

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "grit_lite"]
REWARDS = """
def by_letters(answer, triplet):
    return len(answer.text) % 5 / 5 + sum(map(ord, answer.text)) % 7 / 7

def refuses_the_last_triplet(answer, triplet):
    if triplet.id.endswith("4"):
        raise ValueError("not this one")
    return 1.0
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, four triplets and rewards that vary: what every run here is made of."""
    folder = tmp_path_factory.mktemp("home")
    save_untrained(folder / "model")
    rows = []
    for index, question in enumerate(held_out(["count"], 4, "train")):
        question.image.save(folder / f"{index}.png")
        rows.append({"question": question.question, "answer": question.answer, "image": f"{index}.png"})
    (folder / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    return folder


def train_arguments(home, output, *, reward="by_letters"):
    settings = {
        "model": home / "model",
        "data": home / "triplets.jsonl",
        "rewards": f"{{{home}/rewards.py:{reward}: 1}}",
        "steps": 3,
        "save_every": 1,
        "keep_checkpoints": 3,
        "prompts_per_step": 4,
        "group_size": 4,
        "completions_per_pass": 16,
        "max_grad_norm": 100,  # else clipping would hide a gradient of another length
        "max_completion_tokens": 8,
        "gradient_checkpointing": "true",
        "evaluate": "none",
    }
    named = [f"--set={key}={value}" for key, value in settings.items()]
    return ["train", "--triplets", "4", *named, "--output", str(output)]


def launch(*arguments):
    return subprocess.run([*LAUNCHER, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def alone(home, tmp_path_factory):
    """The run in this process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["grit-lite", *train_arguments(home, folder)])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return folder


@pytest.fixture(scope="module")
def two(home, tmp_path_factory):
    """The same run in two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    done = launch(*train_arguments(home, folder))
    assert done.returncode == 0, done.stderr
    return folder


def rows_of(folder, name):
    return list(read_rows(folder / name))


def test_the_samples_their_rewards_and_advantages_are_those_of_one_process(alone, two):
    expected, found = rows_of(alone, SAMPLES), rows_of(two, SAMPLES)
    assert len(expected) == 3 * 16
    assert len({row["advantage"] for row in expected}) > 10  # they do tell completions apart
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.pop("advantage") == pytest.approx(theirs.pop("advantage"), rel=1e-6)
        assert ours == theirs


def test_the_metrics_of_a_step_are_those_of_the_whole_step(alone, two):
    expected, found = rows_of(alone, METRICS), rows_of(two, METRICS)
    assert [row["step"] for row in found] == [1, 2, 3]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.pop("sampler_gap") is theirs.pop("sampler_gap") is None
        # The loss is the mean of advantages, which is 0 but for rounding.
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def distance(ours, theirs):
    """Of two lists of tensors, relative."""
    one, other = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (ours, theirs))
    return float((one - other).norm() / other.norm())


def gradients(checkpoint):
    """After the first step Adam's first moment is a tenth of the gradient."""
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return [state[number]["exp_avg"] for number in sorted(state)]


def test_the_first_gradient_and_update_are_those_of_one_process(alone, two):
    first = "checkpoints/step-000001"
    assert distance(gradients(two / first), gradients(alone / first)) < 1e-5
    ours, theirs = (load_file(folder / first / "adapter_model.safetensors") for folder in (two, alone))
    updated = [name for name in theirs if "lora_B" in name]  # they begin at 0
    # Adam's first step is the gradient's sign, which rounding decides where the gradient is next to nothing.
    assert distance([ours[name] for name in updated], [theirs[name] for name in updated]) < 1e-4
    assert distance([ours[name] for name in theirs], list(theirs.values())) < 1e-5


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_holds_what_that_of_one_process_holds(alone, two):
    assert names_in(two) == names_in(alone)
    facts = json.loads((two / "run.json").read_text())
    assert (facts["status"], facts["processes"]) == ("done", 2)
    assert (facts["model"]["backend"], facts["model"]["shares_rollout"]) == ("plain", True)


def test_a_signal_to_the_launcher_keeps_a_checkpoint_from_which_two_processes_go_on(home, two, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen([*LAUNCHER, *train_arguments(home, folder)], stderr=subprocess.PIPE, text=True)
    while not rows_of(folder, METRICS):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    if process.returncode:  # the last step may have been over before the signal came
        assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
        assert stderr.count("go on with: grit-lite train --resume") == 1
        resumed = launch("train", "--resume", "--output", folder)
        assert resumed.returncode == 0, resumed.stderr
    for name in (METRICS, SAMPLES, "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (two / name).read_bytes()


def test_where_one_process_fails_all_do_and_it_is_said_once(home, tmp_path):
    folder = tmp_path / "run"
    done = launch(*train_arguments(home, folder, reward="refuses_the_last_triplet"))
    assert done.returncode != 0
    assert done.stderr.count("not this one") == 1
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "failed"
    assert "not this one" in facts["error"]
    assert rows_of(folder, METRICS) == []


@pytest.fixture
def second_of_two(monkeypatch):
    """This process believes itself to be the second of two."""
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


def test_a_variable_that_a_container_may_set_is_not_taken_for_a_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    assert processes.gathered([1, 2]) == [1, 2]


def test_several_processes_take_the_plain_backend_and_say_why(second_of_two):
    choice = import_libraries(Recipe())
    assert choice.name == "plain"
    assert "several processes" in choice.reason
    with pytest.raises(ModelError, match=r"asks for backend: unsloth, but the run has several processes \(2\)"):
        import_libraries(Recipe(backend="unsloth"))


def test_more_processes_than_gpus_are_refused(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelError, match=r"2 processes were started on a machine with 1 GPUs\. Use --num_processes 1"):
        processes.join()


def test_a_launcher_that_would_divide_the_model_is_refused(second_of_two, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ModelError, match=r"divide the model \(FSDP\).*--multi_gpu"):
        processes.join()


RESET = RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:42923: Connection reset by peer")


def test_a_process_that_is_gone_is_named_as_the_reason_unless_it_has_given_one(second_of_two, tmp_path, monkeypatch):
    assert processes.tells_of_a_loss(RESET)
    assert not processes.tells_of_a_loss(RuntimeError("a bug"))
    monkeypatch.setenv("RANK", "0")
    run = Run.create(tmp_path / "run", Recipe())
    error = lost(run, RESET)
    assert isinstance(error, ModelError)
    assert "ended without a word" in run.facts()["error"]
    monkeypatch.setenv("RANK", "1")
    Follower(run.folder).finish("failed", error="out of memory")
    assert run.facts()["error"] == "process 1: out of memory"
    assert isinstance(lost(run, RESET), Elsewhere)
    run.close()


def test_a_follower_of_a_run_writes_nothing_else(second_of_two, tmp_path):
    run = Run.create(tmp_path / "run", Recipe())
    follower = Follower(run.folder)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    follower.update(status="done")
    follower.changed("something")
    follower.finish("stopped", error="asked")
    follower.append(METRICS, [{"step": 1}])
    follower.rewind(0)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before
    with pytest.raises(UsageError, match="shared disk"):
        Follower(tmp_path / "elsewhere")
    run.close()


def test_several_processes_are_not_sampled_by_an_engine_in_each(second_of_two):
    with pytest.raises(ModelError, match=r"vllm: on, but the run has several processes, .*vllm_server"):
        PlainBackend(Recipe(vllm="on"))


def test_an_error_that_all_processes_meet_is_said_by_the_first(second_of_two, monkeypatch):
    error = RecipeError("no such key")
    silent = processes.known_to_all(error)
    assert isinstance(silent, Elsewhere)
    assert silent.exit_code == error.exit_code
    monkeypatch.setenv("RANK", "0")
    assert processes.known_to_all(error) is error


def test_a_step_that_cannot_be_divided_is_refused():
    recipe = Recipe(prompts_per_step=6, group_size=4, completions_per_pass=12)
    assert [recipe.of_one(count) for count in (1, 2, 3, 6)] == [(24, 12), (12, 12), (8, 8), (4, 4)]
    with pytest.raises(RecipeError, match=r"cannot be divided evenly among 4 processes\. Set it to a multiple of 4"):
        recipe.of_one(4)
    with pytest.raises(RecipeError, match="completions_per_pass is 8, which does not divide the 12 completions"):
        Recipe(prompts_per_step=6, group_size=4, completions_per_pass=8).of_one(2)


SERVED = Recipe(vllm_server="http://10.0.0.2:8000")


def test_a_vllm_server_wants_a_gpu_here_an_address_and_whole_weights():
    with pytest.raises(ModelError, match=r"names a vLLM server, but PyTorch finds no CUDA device here"):
        import_libraries(SERVED)
    with pytest.raises(ValueError, match="vllm_server"):
        Recipe(vllm_server="10.0.0.2:8000")
    with pytest.raises(ValueError, match="cannot be had with load_in_4bit"):
        Recipe(vllm_server=SERVED.vllm_server, load_in_4bit=True)


def test_trl_knows_all_that_it_is_told_of_a_vllm_server(tmp_path):
    backend = PlainBackend(SERVED)
    assert not backend.shares_rollout
    told = sampling_arguments(backend, SERVED)
    held = vars(GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **told))
    assert {name: held[name] for name in told} == told
    assert (told["use_vllm"], told["vllm_mode"], told["vllm_server_base_url"]) == (True, "server", SERVED.vllm_server)


def test_a_vllm_server_that_does_not_answer_is_named_with_the_command_that_starts_it():
    command = (
        r"does not answer: refused\n.*VLLM_SERVER_DEV_MODE=1 vllm serve tiny .*\{\"size\": \{\"longest_edge\": 12544"
    )
    with (
        pytest.raises(ModelError, match=command),
        server_explained(PlainBackend(SERVED), SERVED),
    ):
        raise ConnectionRefusedError("refused")


def test_an_evaluation_is_divided_and_put_together_again(alone, tmp_path):
    one, several = (tmp_path / name / "run" for name in ("one", "several"))  # a summary names the run
    for folder in (one, several):
        shutil.copytree(alone, folder)
    options = ["--questions", "8", "--batch-size", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["grit-lite", "eval", str(one), *options])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    done = launch("eval", several, *options)
    assert done.returncode == 0, done.stderr
    for name in ("shapes.json", "shapes.jsonl"):
        assert (several / "eval" / name).read_bytes() == (one / "eval" / name).read_bytes()
    parts = [rows_of(several / "eval", f"shapes.completions.{part}of2.jsonl") for part in (1, 2)]
    assert [len(part) for part in parts] == [15, 9]
    assert done.stdout.count("shapes: 8 questions") == 1
