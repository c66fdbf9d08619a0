"""What only the Unsloth backend promises; `test_promises.py` runs this file in a process of its own."""

import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForImageTextToText
from trl.generation import vllm_generation
from unsloth import save
from unsloth.models import loader
from unsloth.models.vision import VLLM_SUPPORTED_VLM
from unsloth_zoo import llama_cpp

from benchmarks.models import save_random
from grit_lite.backends import Request, open_backend, unsloth_obstacle, verify_arguments
from grit_lite.backends import unsloth as unsloth_backend
from grit_lite.backends.plain import PlainBackend
from grit_lite.backends.unsloth import UnslothBackend
from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES
from grit_lite.recipe import load_recipe
from grit_lite.run import METRICS, Run, read_rows
from grit_lite.tiny.build import save_untrained
from grit_lite.trainer import build_trainer
from tests.sampled_elsewhere import Elsewhere
from tests.test_retrying import arguments, facts, refusing, train
from tests.test_trainer import by_length, triplets

__all__ = ["arguments"]  # a fixture

SMALL = ["steps=2", "prompts_per_step=2", "group_size=4", "max_completion_tokens=8", "save_every=1"]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("untrained"))


def recipe_for(model, *settings):
    return load_recipe("tiny", [f"model={model}", "backend=unsloth", *SMALL, *settings])


def test_unsloth_is_here():
    assert unsloth_obstacle() is None


def test_auto_is_unsloth_and_says_why(untrained):
    backend = open_backend(load_recipe("tiny", [f"model={untrained}", "backend=auto"]))
    facts = backend.describe()
    assert isinstance(backend, UnslothBackend)
    assert (facts["backend"], facts["backend_reason"]) == ("unsloth", "CUDA and Unsloth are here")
    assert {"unsloth", "unsloth_zoo", "trl", "peft"} <= facts["versions"].keys()
    assert (facts["shares_prompts"], facts["shares_rollout"]) == (True, False)


def test_what_it_says_while_loading_is_not_on_stdout(untrained, capfd):
    backend = open_backend(recipe_for(untrained))
    backend.attach_lora(backend.recipe)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("parts", ["[language, attention, mlp]", "[vision, attention]", "[vision, language, mlp]"])
def test_lora_is_on_the_modules_that_the_plain_backend_would_choose(family, parts, tmp_path):
    folder = save_random(tmp_path / family, family, "miniature")
    recipe = load_recipe("tiny", [f"model={folder}", f"lora_parts={parts}"])
    backends = [PlainBackend(recipe), UnslothBackend(recipe)]
    plain, ours = (carriers(backend, recipe) for backend in backends)
    assert ours == plain
    assert ours


def test_its_vllm_takes_the_families_that_the_table_says():
    assert {name for name, family in FAMILIES.items() if family.vllm} == FAMILIES.keys() & set(VLLM_SUPPORTED_VLM)


def carriers(backend, recipe):
    """The names of the modules that carry LoRA, with the rank and the scale of each."""
    backend.attach_lora(recipe)
    modules = backend.model.get_base_model().named_modules()
    return {name: (m.r["default"], m.scaling["default"]) for name, m in modules if hasattr(m, "lora_A")}


def test_the_prompt_has_the_tokens_of_the_plain_backend(untrained):
    recipe = recipe_for(untrained)
    requests = [Request((row.load_image(),), "Where? " * words) for words, row in enumerate(triplets(3), start=1)]
    plain, ours = (backend._encode(requests) for backend in (PlainBackend(recipe), UnslothBackend(recipe)))
    assert ours.keys() == plain.keys()
    assert all((ours[name] == plain[name]).all() for name in plain)


def test_weights_that_unsloth_would_quietly_load_in_another_precision_are_refused(untrained, monkeypatch):
    monkeypatch.setattr(loader, "ALLOW_BITSANDBYTES", False)
    with pytest.raises(ModelError, match="with no 4-bit weights"):
        open_backend(recipe_for(untrained, "load_in_4bit=true"))


def test_trainers_that_unsloth_has_not_made_are_refused(untrained, monkeypatch):
    import trl

    backend = open_backend(recipe_for(untrained))
    assert backend.trainer_types()[1] is trl.GRPOTrainer
    monkeypatch.setattr(trl, "GRPOTrainer", trl.GRPOTrainer.__mro__[-2])
    with pytest.raises(ModelError, match="do not fit each other"):
        backend.trainer_types()


class Training:
    """A trainer in a run folder."""

    def __init__(self, run, stop_after=None, engine=None):
        self.run, self.steps = run, []
        self.backend = open_backend(run.recipe)
        self.backend.attach_lora(run.recipe)
        if engine is not None:
            self.backend.engine = engine(self.backend.model, self.backend.processor)
        self.trainer = build_trainer(
            self.backend,
            run.recipe,
            triplets(),
            run,
            by_length,
            on_step=lambda metrics, timing, samples: self.steps.append((metrics, timing, samples)),
            stop_requested=lambda: stop_after is not None and len(self.steps) >= stop_after,
        )

    def trained(self):
        return {name: value.clone() for name, value in self.backend.model.named_parameters() if value.requires_grad}


@pytest.fixture(scope="module")
def training(untrained, tmp_path_factory):
    made = Training(Run.create(tmp_path_factory.mktemp("runs") / "run", recipe_for(untrained, "steps=3")))
    made.before = made.trained()
    made.trainer.train()
    yield made
    made.run.close()


def test_training_changes_every_matrix_of_the_adapter(training):
    after = training.trained()
    assert len(after) == 56  # 4 layers x 7 linears x (A, B)
    assert [name for name, value in after.items() if (value == training.before[name]).all()] == []


def test_the_trainer_is_built_on_unsloths(training):
    assert "UnslothGRPOTrainer" in [base.__name__ for base in type(training.trainer).__mro__]


def test_the_rollout_is_unsloths_own(training, monkeypatch):
    assert not training.trainer.share_rollout
    calls = []
    model = training.backend.model.get_base_model()
    monkeypatch.setattr(model, "_old_generate", counted(model._old_generate, calls))
    training.trainer._generate_and_score_completions([training.trainer.train_dataset[0]] * 4)
    assert [options["input_ids"].shape[0] for options in calls] == [4]


def counted(function, calls):
    def call(*args, **options):
        calls.append(options)
        return function(*args, **options)

    return call


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(training, untrained, tmp_path):
    first = Training(Run.create(tmp_path / "run", recipe_for(untrained, "steps=3")), stop_after=1)
    first.trainer.train()
    first.run.close()
    run = Run.resume(tmp_path / "run")
    step, folder = run.latest_checkpoint()
    run.rewind(step)
    second = Training(run)
    second.trainer.train(resume_from_checkpoint=str(folder))
    assert 1 <= step < 3
    assert list(read_rows(run.folder / METRICS)) == list(read_rows(training.run.folder / METRICS))
    run.close()


def test_a_model_in_training_streams_what_it_generates_and_is_in_training_afterwards(training):
    training.backend.model.train()
    request = Request((triplets(1)[0].load_image(),), "How many?")
    answer = training.backend.generate([request], max_new_tokens=6)[0].text
    assert "".join(training.backend.stream(request, max_new_tokens=6)) == answer
    assert training.backend.model.training


def test_four_bit_weights_train_under_unsloths_checkpointing(untrained, tmp_path):
    settings = ["load_in_4bit=true", "gradient_checkpointing=true", "steps=1"]
    training = Training(Run.create(tmp_path / "run", recipe_for(untrained, *settings)))
    layers = [module for module in training.backend.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 28  # every linear of the language model's layers
    before = training.trained()
    training.trainer.train()
    changed = [name for name, value in training.trained().items() if (value != before[name]).any()]
    assert sum("lora_B" in name for name in changed) == 28
    training.run.close()


def test_an_argument_that_unsloth_changes_is_named(untrained, tmp_path):
    backend = open_backend(recipe_for(untrained))
    config_type, _ = backend.trainer_types()
    given = {"loss_type": "dapo", "epsilon_high": None, "mask_truncated_completions": False, "num_generations": 4}
    options = {"per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "fp16": False}
    config = config_type(output_dir=str(tmp_path), **options, **given)
    holder = type("Holder", (), {"args": config})()
    with pytest.raises(ModelError, match=r"epsilon_high: None became 0\.28"):
        verify_arguments(holder, given)


def weights_of(training):
    """The weight of each completion of a step, and its tokens."""
    batch = training.trainer._generate_and_score_completions([training.trainer.train_dataset[0]] * 4)
    return batch["importance_sampling_ratio"][:, 0], batch["completion_mask"].sum(1)


def test_completions_of_another_sampler_weigh_what_trl_says(untrained, tmp_path):
    run = Run.create(tmp_path / "run", recipe_for(untrained, "steps=1"))
    training = Training(run, engine=functools.partial(Elsewhere, offset=-0.15))
    training.trainer.train()
    weights, tokens = weights_of(training)
    ratio = (0.15 * tokens).exp()
    torch.testing.assert_close(weights, ratio.masked_fill(ratio > 3, 0), atol=1e-4, rtol=0)
    assert training.trainer.sampler_gap == pytest.approx(0.15, abs=1e-5)
    run.close()


@pytest.mark.parametrize(("offset", "changes"), [(0.0, True), (-5.0, False)])
def test_a_step_leaves_out_what_its_sampler_finds_far_less_likely(untrained, tmp_path, offset, changes):
    run = Run.create(tmp_path / "run", recipe_for(untrained, "steps=1", "beta=0"))
    training = Training(run, engine=functools.partial(Elsewhere, offset=offset))
    before = training.trained()
    training.trainer.train()
    assert any((value != before[name]).any() for name, value in training.trained().items()) == changes
    run.close()


def test_the_trainer_takes_the_engine_that_unsloth_put_on_the_model(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)

    def shared(model, processor):
        model.vllm_engine = SimpleNamespace(shared_weights=True)  # as Unsloth's loader does, where vLLM is
        engine = Elsewhere(model, processor)
        engine.shared = True
        return engine

    run = Run.create(tmp_path / "run", recipe_for(untrained, "steps=1"))
    training = Training(run, engine=shared)
    training.trainer.train()
    assert training.trainer.vllm_generation.llm is training.backend.model.vllm_engine
    assert training.steps[0][0]["sampler_gap"] < 1e-5
    run.close()


@pytest.mark.parametrize(
    ("settings", "family", "reason"),
    [
        ([], "qwen2_5_vl", "PyTorch finds no CUDA device here"),
        (["revision=main"], "qwen3_vl", "revision is set"),
        ([], "internvl", "this release of Unsloth opens no engine for InternVL3"),
    ],
)
def test_what_unsloth_cannot_open_an_engine_for_is_said(untrained, settings, family, reason):
    backend = UnslothBackend(recipe_for(untrained, *settings))
    backend.family = FAMILIES[family]
    assert any(obstacle.startswith(reason) for obstacle in backend._engine_obstacles())


def test_an_engine_that_unsloth_cannot_open_is_refused_in_its_words(untrained, monkeypatch):
    monkeypatch.setattr(UnslothBackend, "_engine_obstacles", lambda self: iter(()))
    with pytest.raises(ModelError, match=r"(?s)vLLM does not start .* set vllm=off"):
        UnslothBackend(recipe_for(untrained, "vllm=on"))


def test_an_engine_that_unsloth_quietly_leaves_out_is_missed(untrained, monkeypatch):
    backend = UnslothBackend(recipe_for(untrained))
    backend.recipe, backend.engine_obstacle = recipe_for(untrained, "vllm=on"), None
    with pytest.raises(ModelError, match="vllm: on, but Unsloth opened no engine"):
        backend._check_engine(backend.model)


def test_gguf_without_llama_cpp_is_refused_before_anything_is_fetched(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "LLAMA_CPP_DEFAULT_DIR", str(tmp_path / "llama.cpp"))
    monkeypatch.setattr(llama_cpp.check_llama_cpp, "__defaults__", (str(tmp_path / "llama.cpp"),))
    backend = open_backend(recipe_for(untrained))
    backend.attach_lora(backend.recipe)
    with pytest.raises(ModelError, match=r"llama\.cpp, which is missing.*install_llama_cpp"):
        backend.save_gguf(tmp_path / "out", "q8_0")
    assert list(tmp_path.iterdir()) == []


def test_gguf_is_made_of_the_base_with_the_adapter_merged(untrained, tmp_path, monkeypatch):
    """Up to llama.cpp, whose part is replaced by two empty files."""
    recipe = recipe_for(untrained)
    trained = open_backend(recipe)
    trained.attach_lora(recipe)
    for name, parameter in trained.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    trained.save_adapter(tmp_path / "adapter")
    tuned = open_backend(recipe, tmp_path / "adapter")
    given = {}

    def convert(**arguments):
        given.update(arguments, model=AutoModelForImageTextToText.from_pretrained(arguments["model_directory"]))
        folder = Path(arguments["gguf_directory"])
        folder.mkdir()
        files = [folder / "tiny.Q8_0.gguf", folder / "tiny.F16-mmproj.gguf"]
        for path in files:
            path.write_text("")
        return [str(path) for path in files], False, True

    monkeypatch.setattr(unsloth_backend, "check_llama_cpp", lambda: None)
    monkeypatch.setattr(save, "save_to_gguf", convert)
    (tmp_path / "out").mkdir()
    tuned.save_gguf(tmp_path / "out", "q8_0")
    layer = tuned.model.get_base_model().model.language_model.layers[0].self_attn.q_proj
    merged = given["model"].model.language_model.layers[0].self_attn.q_proj.weight
    change = layer.get_delta_weight("default")
    assert (given["quantization_method"], given["is_vlm"]) == (["q8_0"], True)
    assert (merged - layer.base_layer.weight - change).norm() < 0.01 * change.norm()
    assert {"tiny.Q8_0.gguf", "tiny.F16-mmproj.gguf"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "merged").exists()


def test_four_bit_weights_are_known_by_their_layers(untrained):
    """A model that is built from vLLM's weights does not say what it is."""
    backend = open_backend(recipe_for(untrained, "load_in_4bit=true"))
    del backend.model.is_loaded_in_4bit
    backend._check_precision(backend.model)


def test_stages_are_refused_with_a_checkpointing_that_cannot_go_in_them(untrained, tmp_path):
    settings = ["prompt_sharing=staged", "gradient_checkpointing=true"]
    run = Run.create(tmp_path / "run", recipe_for(untrained, *settings))
    with pytest.raises(ModelError, match="prompt_sharing is staged, and Unsloth's gradient checkpointing"):
        Training(run)
    run.close()


def test_a_pass_that_does_not_fit_is_tried_again_in_smaller_parts(arguments, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    settings = ["backend=unsloth", "gradient_checkpointing=true", "completions_per_pass=4", "steps=1"]
    with refusing(folder, tokens=1, times=1):
        options = [f"--set={setting}" for setting in settings]
        assert train(monkeypatch, *arguments, *options, "--output", folder) == 0
    assert facts(folder)["made_smaller"] == {"completions_per_pass": 2}
