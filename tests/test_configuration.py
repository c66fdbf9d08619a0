"""A model that cannot be had or used is one clear message before anything large is read.

The hub is a scripted server on this machine; the client that talks to it is the real one.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from grit_lite.backends import find_spec
from grit_lite.backends.configuration import find_family, read_configuration
from grit_lite.boxes import BoxSpace
from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES
from grit_lite.recipe import Recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What the hub answers for a model: status, X-Error-Code, body.
ANSWERS = {
    "owner/gated": (403, "GatedRepo", b""),
    "owner/missing": (401, "RepoNotFound", b""),
    "owner/bare": (404, "EntryNotFound", b""),
    "owner/old": (404, "RevisionNotFound", b""),
    "owner/llava": (200, None, b'{"model_type": "llava"}'),
    "owner/known": (200, None, b'{"model_type": "internvl"}'),
}
ASK = """
import json, sys
from grit_lite.backends import find_spec
from grit_lite.errors import ModelError
from grit_lite.recipe import Recipe
found = {}
for model in sys.argv[1:]:
    try:
        found[model] = find_spec(Recipe(model=model)).family
    except ModelError as error:
        found[model] = str(error)
print(json.dumps(found))
"""


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        owner, name = self.path.split("/")[1:3]
        self.server.asked.append((self.command, f"{owner}/{name}"))
        status, code, body = ANSWERS[f"{owner}/{name}"]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0123456789"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(home, endpoint, *command, **environment):
    """A command in a process of its own, which knows no hub but this one and has no token."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "no_proxy": "*",
        **environment,
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def answers(hub, tmp_path_factory):
    """What became of each model, and what the hub was asked for it."""
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    done = run(tmp_path_factory.mktemp("home"), endpoint, sys.executable, "-c", ASK, *ANSWERS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), list(hub.asked)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (
            "owner/gated",
            ["owner/gated is gated", "hf auth login", "HF_TOKEN", "licence on https://huggingface.co/owner/gated"],
        ),
        (
            "owner/missing",
            ["no model owner/missing", "Check the name", "private or gated", "hf auth login", "HF_TOKEN"],
        ),
        ("owner/bare", ["owner/bare has no config.json on the hub"]),
        ("owner/old", ["owner/old has no revision"]),
        ("owner/llava", ["of the class 'llava'", *(family.example for family in FAMILIES.values())]),
    ],
)
def test_a_model_that_cannot_be_had_says_why_and_what_to_do(answers, model, parts):
    found, asked = answers
    assert all(part in found[model] for part in parts), found[model]
    if ANSWERS[model][0] >= 400:
        assert asked.count(("HEAD", model)) == 1  # a refusal is final


def test_a_model_of_a_known_family_is_found_by_its_configuration_alone(answers):
    found, asked = answers
    assert found["owner/known"] == "internvl"
    assert asked.count(("GET", "owner/known")) == 1


def test_a_configuration_that_is_on_this_machine_is_not_asked_for(hub, tmp_path):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    first = run(tmp_path, endpoint, sys.executable, "-c", ASK, "owner/known")
    before = len(hub.asked)
    again = run(tmp_path, endpoint, sys.executable, "-c", ASK, "owner/known", HF_HUB_OFFLINE="1")
    assert json.loads(first.stdout) == json.loads(again.stdout) == {"owner/known": "internvl"}
    assert len(hub.asked) == before


def test_without_a_network_the_hub_is_tried_once(tmp_path):
    done = run(tmp_path, "http://127.0.0.1:9", sys.executable, "-c", ASK, "owner/known")  # nobody listens there
    message = json.loads(done.stdout)["owner/known"]
    assert "owner/known is not on this machine, and the hub does not answer" in message
    assert "Check the network" in message
    assert "Retrying" not in done.stderr


def test_offline_and_not_on_this_machine_names_the_switch(tmp_path):
    done = run(tmp_path, "http://127.0.0.1:9", sys.executable, "-c", ASK, "owner/known", HF_HUB_OFFLINE="1")
    assert "not on this machine, and HF_HUB_OFFLINE is set" in json.loads(done.stdout)["owner/known"]


def test_a_gated_model_ends_training_with_exit_code_4_before_there_is_a_run(hub, tmp_path):
    command = [str(Path(sys.executable).with_name("grit-lite")), "train", "--recipe", "tiny"]
    options = ["--set", "model=owner/gated", "--output", str(tmp_path / "run")]
    done = run(tmp_path / "home", f"http://127.0.0.1:{hub.server_port}", *command, *options)
    assert done.returncode == 4
    assert "log in with `hf auth login` or set HF_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# Folders


def write(folder, text, name="config.json"):
    (folder / name).write_text(text)
    return str(folder)


def test_a_folder_of_an_unknown_class_is_refused_by_its_configuration_alone(tmp_path):
    with pytest.raises(ModelError, match=r"of the class 'llava', which grit-lite does not know .* Known: Qwen2\.5-VL"):
        find_family(write(tmp_path, '{"model_type": "llava"}'))


def test_internvl_in_its_authors_own_format_is_told_of_the_other(tmp_path):
    with pytest.raises(ModelError, match="authors' own format; name the one that ends in -hf"):
        find_family(write(tmp_path, '{"model_type": "internvl_chat"}'))


@pytest.mark.parametrize("text", ["{}", '{"model_type": ["qwen3_vl"]}'])
def test_a_configuration_without_a_class_is_refused(tmp_path, text):
    with pytest.raises(ModelError, match="does not know how to prompt"):
        find_family(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not readable"), ("[]", "holds no JSON object"), (None, "the folder has no config")]
)
def test_a_folder_without_a_usable_configuration_is_no_model(tmp_path, text, message):
    if text is not None:
        write(tmp_path, text)
    with pytest.raises(ModelError, match=message):
        read_configuration(str(tmp_path))


def test_a_model_of_another_class_may_say_which_family_it_is_like(tmp_path):
    write(tmp_path, '{"model_type": "llava"}')
    prompt = {"grounded": "{question}", "direct": "{question}"}
    said = {"family": "qwen3_vl", "box_space": "resized_pixels", "prompt": prompt}
    write(tmp_path, json.dumps(said), "grit_lite.json")
    spec = find_spec(Recipe(model=str(tmp_path)))
    assert (spec.family, spec.box_space) == ("qwen3_vl", BoxSpace.RESIZED_PIXELS)


def test_an_adapter_says_how_its_model_reads_and_the_model_must_be_there_all_the_same(tmp_path):
    prompt = {"grounded": "{question}", "direct": "{question}"}
    said = {"family": "qwen3_vl", "box_space": "norm1000", "prompt": prompt}
    write(tmp_path, json.dumps(said), "grit_lite.json")
    assert find_spec(Recipe(model="tiny"), tmp_path).box_space is BoxSpace.NORM1000
    with pytest.raises(ModelError, match="nobody/nothing is not on this machine"):
        find_spec(Recipe(model="nobody/nothing"), tmp_path)


def test_a_family_that_nobody_knows_cannot_be_claimed(tmp_path):
    prompt = {"grounded": "{question}", "direct": "{question}"}
    write(tmp_path, json.dumps({"family": "llava", "box_space": "norm1000", "prompt": prompt}), "grit_lite.json")
    with pytest.raises(ModelError, match=r"not a usable model spec: .*its family is none of qwen2_5_vl, "):
        find_spec(Recipe(model=str(tmp_path)))
