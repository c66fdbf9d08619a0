"""Asking: what a completion is kept under, the file that it is kept in, and the parts of a whole."""

from dataclasses import replace

import pytest
from PIL import Image

from grit_lite.answer import GRIT_PROMPT
from grit_lite.backends import Generated, ModelSpec
from grit_lite.boxes import BoxSpace
from grit_lite.errors import UsageError
from grit_lite.evaluate import SYSTEMS, Decoding, Evaluation, Question, Shard
from grit_lite.evaluate.runner import Asking, Completions, key

IDENTITY = {"weights": "w", "adapter": "a", "processor": "p", "generator": {"dtype": "float32"}}


def test_a_key_depends_on_all_that_a_completion_depends_on_and_on_nothing_else():
    def of(identity=IDENTITY, prompt="?", images=("i",), decoding=None, seed=None):
        return key(identity, prompt, images, decoding or Decoding(8), seed)

    others = [of({**IDENTITY, part: "other"}) for part in IDENTITY]
    others += [of(prompt="!"), of(images=("j",)), of(images=("i", "i")), of(seed=0), of(seed=1)]
    others += [of(decoding=Decoding(9)), of(decoding=Decoding(8, 1.0))]
    assert len({of(), *others}) == 1 + len(others)
    assert of() == of(decoding=Decoding(8, draws=5))


def test_questions_that_ask_the_same_share_a_greedy_completion_and_no_sampled_one():
    class Named:
        spec = ModelSpec("qwen3_vl", BoxSpace.RESIZED_PIXELS, GRIT_PROMPT)

        def describe(self):
            return {}

        def fingerprints(self):
            return {"weights": "w", "adapter": "a"}

    def keys(decoding):
        return {one.key for one in Asking(Named(), decoding, 4).prepare(twice, SYSTEMS["tuned"])}

    question = Question("q", "?", "yes", (Image.new("RGB", (4, 4)),), (4, 4))
    twice = [question, replace(question, id="r")]
    assert len(keys(Decoding(8))) == 1
    assert len(keys(Decoding(8, 1.0, draws=3))) == 6


def test_a_torn_row_is_cut_off_and_the_whole_ones_are_kept(tmp_path):
    store = Completions(tmp_path, "b")
    with store.writing():
        store.add({"k1": Generated("a line\nanother\u2028", 3, True, (10, 20))})
    with store.path.open("ab") as file:
        file.write(b'{"key": "k2", "te')
    again = Completions(tmp_path, "b")
    with again.writing():
        again.add({"k3": Generated("", 0, False, (1, 1))})
    read = Completions(tmp_path, "b")
    assert "k2" not in read
    assert (read["k1"], read["k3"]) == (store["k1"], again["k3"])
    assert read["k1"].resized == (10, 20)


def test_two_processes_do_not_write_one_file(tmp_path):
    store = Completions(tmp_path, "b")
    with store.writing(), pytest.raises(UsageError, match="--shard 1/2"), Completions(tmp_path, "b").writing():
        pass


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/", "a/b", "-1/2", ""])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="write it as 1/4"):
        Shard.read(text)


def test_every_batch_is_in_one_shard():
    shards = [Shard.read(f"{i}/3") for i in (1, 2, 3)]
    assert [[shard.has(batch) for shard in shards].count(True) for batch in range(7)] == [1] * 7


def test_questions_with_one_id_are_refused(tmp_path):
    question = Question("q", "?", "yes", (Image.new("RGB", (4, 4)),), (4, 4))
    with pytest.raises(UsageError, match="two have the same id"):
        Evaluation([question, question], benchmark="b", folder=tmp_path, decoding=Decoding(8))
    other = replace(question, id="r")
    Evaluation([question, other], benchmark="b", folder=tmp_path, decoding=Decoding(8))
