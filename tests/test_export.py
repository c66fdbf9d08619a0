"""A run that becomes a folder for others: the same model, checked, with a card of measured numbers."""

import contextlib
import getpass
import io
import json
import re
import shutil
import sys
from dataclasses import replace

import psutil
import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft.tuners.lora import LoraModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.models import save_random
from grit_lite.backends import Request, find_spec, open_backend, read_spec
from grit_lite.boxes import Box
from grit_lite.chat import find_model
from grit_lite.cli import main
from grit_lite.errors import ModelError, OutOfMemory, UsageError
from grit_lite.evaluating import measure
from grit_lite.export import Wish, export, export_dtype, open_source, serving
from grit_lite.export.card import base_license, metadata
from grit_lite.export.parity import Reply, compare
from grit_lite.families import FAMILIES
from grit_lite.recipe import load_recipe
from grit_lite.run import Run, read_facts, write_json
from grit_lite.tiny.world import make_scene
from grit_lite.training import save_adapter
from tests.hub_server import TOKEN, running

SHORT = ["max_completion_tokens=24", "eval_questions=8"]
FEW = Wish(questions=3)


def make_run(folder, *settings, strength=0.15, evaluate=False):
    """A finished run, its adapter drawn at random instead of trained; 0 is one that changes nothing."""
    recipe = load_recipe("tiny", [*SHORT, *settings])
    run = Run.create(folder, recipe)
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in backend.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=strength, generator=generator)
    backend.model.eval()
    save_adapter(run, backend)
    if evaluate:
        measure(folder, recipe, backend)
    run.update(data={"triplets": 20, "rows": 20, "by_dataset": {"shapes_count": 20}, "sha256": "ab" * 32})
    run.finish("done")
    run.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "first-run", evaluate=True)


@pytest.fixture(scope="module")
def merged(run):
    """(folder, what `export` returned)."""
    result = export(run, Wish())
    return run / "export" / "merged", result


@pytest.fixture(scope="module")
def adapter(run):
    export(run, replace(FEW, format="adapter"))
    return run / "export" / "adapter"


@pytest.fixture(scope="module")
def tuned(run):
    return open_backend(load_recipe(str(run / "recipe.yaml")), run / "adapter")


def scene():
    return make_scene(0, "test").image


def run_cli(monkeypatch, *arguments):
    """The exit code of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["grit-lite", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


# What is in the folder


def test_merged_weights_are_the_base_with_the_adapter_on(merged, tuned):
    folder, _ = merged
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.dtype == torch.float32
    batch = tuned._encode([Request((scene(),), tuned.spec.prompts.render("How many red circles are there?"))])
    assert processor.chat_template == tuned.processor.chat_template
    with torch.no_grad():
        ours, theirs = model(**batch).logits, tuned.model(**batch).logits
        with tuned.model.disable_adapter():
            base = tuned.model(**batch).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, base, atol=1e-1)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_every_family_is_merged(family, tmp_path):
    base = save_random(tmp_path / "base", family, "miniature")
    run = make_run(tmp_path / "run", f"model={base}", "max_completion_tokens=4", strength=0.3)
    result = export(run, FEW)
    assert (result["parity"]["identical"], result["parity"]["changed"]) == (1.0, 1.0)


def test_prompt_and_box_space_travel(merged, run):
    assert read_spec(merged[0]) == read_spec(run / "adapter")


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_the_recipes_limit_of_pixels_travels(run, tmp_path, form):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    (copy / "recipe.yaml").write_text(load_recipe(str(run / "recipe.yaml"), ["max_pixels=6400"]).text())
    folder = export(copy, Wish(form, questions=0))["folder"]
    assert AutoProcessor.from_pretrained(folder).image_processor.size["longest_edge"] == 6400


def test_vision_tokens_are_not_generated_by_plain_transformers_either(merged):
    model = AutoModelForImageTextToText.from_pretrained(merged[0])
    tokenizer = AutoProcessor.from_pretrained(merged[0]).tokenizer
    named = tokenizer.convert_ids_to_tokens(model.generation_config.suppress_tokens)
    assert set(named) == set(FAMILIES["qwen3_vl"].vision_tokens) & tokenizer.get_vocab().keys()


def test_a_run_on_four_bit_weights_is_merged_into_the_published_ones(tmp_path, tuned):
    run = make_run(tmp_path / "run", "load_in_4bit=true", "dtype=auto")
    result = export(run, Wish(questions=0))
    model = AutoModelForImageTextToText.from_pretrained(result["folder"])
    assert (model.dtype, hasattr(model.config, "quantization_config")) == (torch.bfloat16, False)
    exact = tuned.model.get_base_model().model.language_model.layers[0].self_attn.q_proj
    expected = exact.base_layer.weight + exact.get_delta_weight("default")  # the adapters are drawn alike
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight.float()
    assert torch.allclose(
        weight, expected, rtol=2**-8, atol=2**-9
    )  # a rounding to bfloat16 of the base, one of the rest


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        ([], "auto", "float32"),
        (["dtype=auto"], "auto", "bfloat16"),
        (["dtype=float16"], "auto", "float16"),
        ([], "float16", "float16"),
    ],
)
def test_precision_is_as_asked_else_as_trained_else_bfloat16(settings, asked, expected):
    assert export_dtype(load_recipe("tiny", settings), asked) == expected


def test_the_exported_folder_answers_in_chat(merged, tmp_path, monkeypatch, capsys, tuned):
    scene().save(tmp_path / "image.png")
    question = "How many red circles are there?"
    arguments = [tmp_path / "image.png", "-q", question, "--model", merged[0], "--json", "--no-preview"]
    assert run_cli(monkeypatch, "chat", *arguments) == 0
    said = json.loads(capsys.readouterr().out)["completion"]
    expected = tuned.generate([Request((scene(),), tuned.spec.prompts.render(question))], max_new_tokens=512)[0].text
    assert said == expected


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_nothing_of_this_machine_is_in_an_export(form, tmp_path):
    base = save_random(tmp_path / "base", "qwen3_vl", "miniature")
    data = tmp_path / "mine.jsonl"
    rewards = f"rewards={{tags: 1, '{tmp_path}/rewards.py:short': 1}}"
    run = make_run(tmp_path / "run", f"model={base}", f"data={data}", rewards, "max_completion_tokens=4")
    facts = {"status": "stopped", "error": f"Go on with {run}.", "machine": {"host": "a-host-of-mine"}}
    write_json(run / "run.json", {**read_facts(run), **facts})
    folder = export(run, replace(FEW, format=form))["folder"]
    texts = [path.read_bytes() for path in (run / "export" / form).rglob("*")]
    assert len(texts) > 6
    for word in (str(tmp_path), "a-host-of-mine", folder, f"/{getpass.getuser()}/"):
        assert not any(word.encode() in text for text in texts), word
    assert "mine.jsonl" in (run / "export" / form / "README.md").read_text()


# The check


def test_the_check_is_written_down(merged):
    folder, result = merged
    parity = json.loads((folder / "export.json").read_text())["parity"]
    assert parity == result["parity"]
    assert (parity["questions"], parity["identical"], parity["agreement"], parity["required"]) == (16, 1.0, 1.0, 0.9)
    assert parity["changed"] > 0.3
    assert parity["said"] in (folder / "README.md").read_text()


def test_an_export_that_lost_its_adapter_is_refused_and_kept_under_another_name(run, tmp_path, monkeypatch):
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    with pytest.raises(ModelError, match=r"does not answer as the run's model does.*\n.*unverified") as error:
        export(run, replace(FEW, to=tmp_path / "out"))
    assert error.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out-unverified"]
    assert (tmp_path / "out-unverified" / "model.safetensors").is_file()


def test_an_adapter_that_changes_nothing_is_said(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", strength=0.0)
    assert run_cli(monkeypatch, "export", run, "--questions", "2") == 0
    assert "the adapter changes nothing that this check can see" in " ".join(capsys.readouterr().err.split())


def test_an_unchecked_export_says_so(tmp_path, run):
    result = export(run, Wish(format="adapter", to=tmp_path / "out", questions=0))
    assert result["parity"] is None
    assert "the check was left out" in (tmp_path / "out" / "README.md").read_text()


HERE, NEAR, FAR = Box(10, 10, 30, 30), Box(13, 10, 30, 26), Box(15, 10, 30, 30)


@pytest.mark.parametrize(
    ("exported", "identical", "same_boxes", "agreement"),
    [
        (Reply("a", (HERE,)), 1.0, 1.0, 1.0),
        (Reply("b", (NEAR,)), 0.0, 1.0, 1.0),
        (Reply("b", (FAR,)), 0.0, 0.0, 0.0),
        (Reply("b", (HERE, HERE)), 0.0, 0.0, 0.0),
        (Reply("b", ()), 0.0, 0.0, 0.0),
    ],
)
def test_completions_agree_if_identical_or_with_the_same_boxes(exported, identical, same_boxes, agreement):
    parity = compare([Reply("base", ())], [Reply("a", (HERE,))], [exported], exact=True)
    assert (parity.identical, parity.same_boxes, parity.agreement) == (identical, same_boxes, agreement)


def test_only_questions_that_tell_the_run_from_the_base_count():
    same, differs = Reply("a", ()), Reply("b", ())
    parity = compare([same] * 3, [same, same, differs], [same, same, same], exact=True)
    assert (round(parity.identical, 2), parity.agreement) == (0.67, 0.0)


def test_a_completion_without_boxes_agrees_only_if_identical():
    parity = compare([Reply("a", ())] * 2, [Reply("a", ())] * 2, [Reply("a", ()), Reply("b", ())], exact=False)
    assert (parity.with_boxes, parity.same_boxes, parity.agreement, parity.changed) == (0, None, 0.5, 0.0)
    parity.require()  # rounding may change half of the completions
    with pytest.raises(ModelError, match="90% must agree"):
        replace(parity, required=0.9).require()


# The card


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def test_the_cards_evaluation_is_the_run_folders(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    path = copy / "eval" / "shapes.json"
    result = json.loads(path.read_text())
    result["systems"]["tuned"]["accuracy"]["all"] = {"value": 0.123, "low": 0.045, "high": 0.678, "n": 8}
    path.write_text(json.dumps(result))
    export(copy, Wish(format="adapter", questions=0))
    (line,) = (line for line in card_of(copy / "export/adapter").text.splitlines() if "Right answers (in" in line)
    cells = [cell.strip() for cell in line.split("|")]
    base = result["systems"]["base_direct"]["accuracy"]["all"]
    assert cells[2] == " – ".join([f"{100 * base['value']:.1f} ({100 * base['low']:.1f}", f"{100 * base['high']:.1f})"])
    assert cells[4] == "12.3 (4.5 – 67.8)"


def test_a_run_that_was_not_evaluated_has_a_card_without_an_evaluation(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export", "eval"))
    export(copy, Wish(format="adapter", questions=0))
    section = card_of(copy / "export/adapter").text.split("## Evaluation")[1].split("## Use it")[0]
    assert section.strip() == "This run was not evaluated."


def test_the_card_says_how_it_was_trained_and_what_it_does_not_show(merged):
    text = card_of(merged[0]).text
    assert "| steps | 60 |" in text
    assert "kinds: 20 shapes_count" in text
    assert "tiny is a laboratory" in text


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_the_cards_snippet_answers_as_the_run_does(form, request, tmp_path, monkeypatch, tuned):
    folder = request.getfixturevalue(form)
    folder = folder[0] if form == "merged" else folder
    monkeypatch.chdir(folder.parent)
    (snippet,) = re.findall(r"```python\n(.*?)```", card_of(folder).text, flags=re.DOTALL)
    scene().save(tmp_path / "image.png")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(snippet.replace('"image.png"', repr(str(tmp_path / "image.png"))), {})
    question = tuned.spec.prompts.render("How many red circles are there?")
    expected = tuned.generate([Request((Image.open(tmp_path / "image.png"),), question)], max_new_tokens=24)[0]
    size = "Boxes are in pixels of the image at {} x {}.\n".format(*expected.resized)
    assert printed.getvalue() == f"{expected.text}\n{size}"


def test_metadata_is_what_the_hub_reads(merged, adapter, run):
    data = card_of(merged[0]).data.to_dict()
    assert (data["library_name"], data["license"], "base_model" in data) == ("transformers", "apache-2.0", False)
    assert {"grit", "grounded-reasoning", "grpo"} <= set(data["tags"])
    assert card_of(adapter).data.library_name == "peft"
    source = open_source(run)
    recipe = source.recipe.model_copy(update={"model": "Qwen/Qwen2.5-VL-3B-Instruct", "data": "hf:owner/rows:part"})
    data = metadata(replace(source, recipe=recipe), "adapter").to_dict()
    assert data["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (data["base_model_relation"], data["datasets"]) == ("adapter", ["owner/rows"])


def test_the_licence_is_the_one_that_the_bases_own_card_states(tmp_path):
    assert base_license(str(tmp_path), None) == {}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\nA model.")
    assert base_license(str(tmp_path), None) == {"license": "other", "license_name": "qwen-research"}


# Serving


def serve(run, *settings, form="adapter"):
    source = replace(open_source(run), recipe=load_recipe("tiny", ["model=owner/base", *settings]))
    return serving.command(
        source, {"format": form, "files": {"a.Q8_0.gguf": 1, "a.BF16-mmproj.gguf": 1}}, "out", "owner/base"
    )


def test_vllm_serves_merged_weights(run):
    assert serve(run, form="merged").startswith("vllm serve out --limit-mm-per-prompt.image 1 ")


def test_vllm_serves_the_adapter_beside_its_base(run):
    command = serve(run, "revision=abc", "max_pixels=50176")
    assert command.startswith("vllm serve owner/base --revision abc --enable-lora --lora-modules first-run=out ")
    assert "--max-lora-rank 16 " in command
    assert """--mm-processor-kwargs '{"max_pixels": 50176}'""" in command
    assert "tower" not in command


def test_vllm_gets_the_next_rank_it_knows_and_is_told_of_lora_in_the_vision_tower(run):
    command = serve(run, "lora_rank=24", "lora_parts=[language, vision, attention]")
    assert "--max-lora-rank 32" in command
    assert "--enable-tower-connector-lora" in command


def test_llama_cpp_gets_both_files(run):
    assert serve(run, form="gguf") == "llama-mtmd-cli --model out/a.Q8_0.gguf --mmproj out/a.BF16-mmproj.gguf"


# Refusals


def test_what_is_no_finished_run_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match=r"no recipe\.yaml"):
        export(tmp_path, FEW)
    shutil.copy(run / "recipe.yaml", tmp_path)
    with pytest.raises(UsageError, match="grit-lite train --resume"):
        export(tmp_path, FEW)
    shutil.copytree(run / "adapter", tmp_path / "adapter", ignore=shutil.ignore_patterns("grit_lite.json"))
    with pytest.raises(ModelError, match=r"no grit_lite\.json"):
        export(tmp_path, FEW)


@pytest.mark.parametrize("occupied", ["out", "out-unverified"])
def test_an_occupied_folder_is_refused_and_left_alone(run, tmp_path, occupied):
    (tmp_path / occupied).mkdir()
    (tmp_path / occupied / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="never writes over"):
        export(run, replace(FEW, to=tmp_path / "out"))
    assert [path.name for path in tmp_path.rglob("*")] == [occupied, "mine.txt"]


def test_an_empty_folder_is_taken(run, tmp_path):
    (tmp_path / "out").mkdir()
    export(run, Wish("adapter", to=tmp_path / "out", questions=0))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_to_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        export(run, replace(FEW, to=tmp_path / "file" / "out"))


@pytest.mark.parametrize("moment", ["Merging", "Checking"])
def test_an_interrupted_export_leaves_nothing(run, tmp_path, moment):
    def interrupt(said):
        if said.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(run, replace(FEW, to=tmp_path / "out"), say=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_swept_away(run, tmp_path):
    left = tmp_path / ".out.exporting"
    left.mkdir()
    (left / "torn.safetensors").write_text("")
    export(run, Wish("adapter", to=tmp_path / "out", questions=0))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "torn.safetensors").exists()


def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_loaded(run, tmp_path, monkeypatch):
    memory = psutil.virtual_memory()._replace(available=10_000_000)  # tiny in float32 is 10.6 MB
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(OutOfMemory, match=r"needs 0\.0 GB.*--format adapter"):
        export(run, replace(FEW, to=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
    export(run, replace(FEW, to=tmp_path / "half", dtype="bfloat16", questions=0))


def test_weights_that_do_not_fit_on_the_disk_are_refused(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError, match="on another with --to"):
        export(run, replace(FEW, to=tmp_path / "out"))


def test_gguf_without_unsloth_is_refused_with_the_way_round(run, tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, "export", run, "--format", "gguf", "--to", tmp_path / "out") == 4
    said = capsys.readouterr().err
    assert "PyTorch finds no CUDA device here" in said
    assert f"python llama.cpp/convert_hf_to_gguf.py {run}/export/merged --mmproj" in said
    assert list(tmp_path.iterdir()) == []


def test_private_needs_a_repository(run, monkeypatch, capsys):
    assert run_cli(monkeypatch, "export", run, "--private") == 2
    assert "--push OWNER/NAME" in capsys.readouterr().err


# The hub


@pytest.fixture
def hub(monkeypatch):
    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        files = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_an_export_is_published_whole_with_its_card(run, tmp_path, hub, monkeypatch, capsys):
    what = ["--format=adapter", "--questions=0", f"--to={tmp_path / 'out'}"]
    assert run_cli(monkeypatch, "export", run, *what, "--push=ada/boxes", "--private", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pushed"] == f"{hub.address}/ada/boxes"
    (repository,) = hub.repositories
    assert (repository["organization"], repository["name"], repository["visibility"]) == ("ada", "boxes", "private")
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert b'from_pretrained(model, "ada/boxes")' in hub.files["README.md"]
    assert not any(TOKEN.encode() in content for content in hub.files.values())


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_what_was_published_is_asked_by_its_name(form, request, hub, tmp_path, monkeypatch, capsys, tuned):
    folder = request.getfixturevalue(form)
    folder = folder[0] if form == "merged" else folder
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    scene().save(tmp_path / "image.png")
    question = "How many red circles are there?"
    arguments = [tmp_path / "image.png", "-q", question, "--model", "ada/boxes", "--json", "--no-preview"]
    assert run_cli(monkeypatch, "chat", *arguments) == 0
    said = json.loads(capsys.readouterr().out)["completion"]
    expected = tuned.generate([Request((scene(),), tuned.spec.prompts.render(question))], max_new_tokens=128)[0].text
    assert said == expected
    chosen = find_model("ada/boxes")
    assert find_spec(chosen.recipe, chosen.adapter) == tuned.spec  # not its family's


def test_a_missing_token_is_said_before_any_work(run, tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    with pytest.raises(ModelError, match=r"there is none.*hf auth login"):
        export(run, replace(FEW, to=tmp_path / "out", push="ada/boxes"))
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_the_hub_does_not_know_is_said_before_any_work(run, tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelError, match=r"the hub answered 401.*hf auth login") as error:
        export(run, replace(FEW, to=tmp_path / "out", push="ada/boxes"))
    assert "hf_wrong" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_right_to_write_the_export_is_kept(run, tmp_path, hub):
    hub.refuse_creation = 403
    wish = Wish("adapter", to=tmp_path / "out", push="ada/boxes", questions=0)
    with pytest.raises(ModelError, match=r"is complete in .*the hub answered 403.*\nOnce .*hf upload ada/boxes"):
        export(run, wish)
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_hub_that_cannot_be_reached_is_said_before_any_work(run, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"not possible.*offline"):
        export(run, replace(FEW, to=tmp_path / "out", push="ada/boxes"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["boxes", "ada/boxes/3b", "ada/", "ada/bo xes", "../boxes"])
def test_a_name_that_no_repository_can_have_is_refused(run, tmp_path, hub, name):
    with pytest.raises(UsageError, match="write OWNER/NAME"):
        export(run, replace(FEW, to=tmp_path / "out", push=name))
