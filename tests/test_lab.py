"""The laboratory: a valid study, runs of what is missing and nothing else, statistics that know made-up answers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.lab import ROOT, results, target, training, triplets
from benchmarks.lab.__main__ import OUTPUT, main
from benchmarks.lab.analysis import Interval, Results, Values, compare, where_samples_stop
from benchmarks.lab.measuring import (
    HARDER_SPLITS,
    Outcome,
    held_out_questions,
    pack_bits,
    packed,
    summary,
    unpack_bits,
    unpack_levels,
)
from benchmarks.lab.one import identity
from benchmarks.lab.study import DEFAULT, load_study
from benchmarks.lab.tables import Tables
from benchmarks.lab.wording import decimals
from grit_lite.errors import DataError, RecipeError, UsageError
from grit_lite.evaluate.statistics import share, wilson
from grit_lite.judge import open_judge
from grit_lite.recipe import recipe_files
from grit_lite.rewards import build_scorer
from grit_lite.run import read_rows
from grit_lite.tiny.questions import held_out
from grit_lite.triplets import load
from tests import lab_rows

SMALL = (
    "steps: 2, prompts_per_step: 1, group_size: 2, completions_per_pass: 2, max_completion_tokens: 24, save_every: 1"
)


def study_file(tmp_path, arms, seeds=1):
    lines = "\n".join(f"      {name}: {{{settings}, why: test}}" for name, settings in arms.items())
    text = f"recipe: tiny\ngroups:\n  test:\n    question: Does it run?\n    seeds: {seeds}\n    arms:\n{lines}\n"
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


# --- the study


def test_every_arm_of_the_study_is_a_valid_recipe_with_rewards_that_can_be_built():
    study = load_study()
    for arm in study.arms():
        recipe = study.recipe_of(arm, seed=arm.seeds[-1])
        assert recipe.seed == arm.seeds[-1]
        assert recipe.prompts_per_step == 4
        build_scorer(recipe.rewards, open_judge(recipe.judge))
    assert DEFAULT in {arm.id for arm in study.arms()}
    assert len({arm.id for arm in study.arms()}) == len(list(study.arms()))


def test_no_arm_is_the_default_arm_again():
    study = load_study()
    trained = [arm for arm in study.arms() if arm.method == "grpo"]
    recipes = [study.recipe_of(arm, seed=0).model_copy(update={"name": ""}) for arm in trained]
    assert all(a != b for k, a in enumerate(recipes) for b in recipes[:k])


def test_the_study_is_no_recipe():
    assert not {"lab", "study"} & recipe_files().keys()


def test_runs_come_by_group_then_seed(tmp_path):
    study = load_study(study_file(tmp_path, {"one": "steps: 1", "two": "steps: 2"}, seeds=2))
    jobs = [(arm.id, seed) for arm, seed in study.jobs()]
    assert jobs == [("test/one", 0), ("test/two", 0), ("test/one", 1), ("test/two", 1)]
    assert [(arm.name, seed) for arm, seed in study.jobs(["test/t*"], seeds=[1])] == [("two", 1)]
    with pytest.raises(UsageError, match="no such group or arm"):
        study.jobs(["tes"])


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("learning_rte: 1", "learning_rate"),
        ("method: dpo", "Methods are"),
        ("data: drawn, triplets: null", "how many"),
        ("method: sft, triplets: 5", "can have no others"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(tmp_path, arm, message):
    with pytest.raises(RecipeError, match=message):
        load_study(study_file(tmp_path, {"wrong": arm}))


def test_an_arm_without_a_reason_is_refused(tmp_path):
    path = study_file(tmp_path, {"idle": "loss: dapo"})
    path.write_text(path.read_text().replace(", why: test", ""))
    with pytest.raises(RecipeError, match="test/idle says no `why`"):
        load_study(path)


# --- triplets


def test_fewer_triplets_are_the_first_ones_of_more_and_seeds_draw_others(tmp_path):
    paths = [triplets.write_drawn(tmp_path, count, seed) for count, seed in ((5, 0), (50, 0), (50, 1))]
    few, many, other = ([(t.question, t.load_image().tobytes()) for t in load(path).triplets] for path in paths)
    assert (len(few), len(many)) == (5, 50)
    assert few == many[:5]
    assert not {image for _, image in many} & {image for _, image in other}
    assert [t.dataset for t in load(paths[0]).triplets][:2] == ["shapes_count", "shapes_relation"]


def test_chains_by_rule_say_what_the_triplet_says():
    from grit_lite.answer import has_valid_format, parse
    from grit_lite.boxes import union_iou

    for triplet, chain in triplets.embedded_with_chains():
        answer = parse(chain)
        assert has_valid_format(answer)
        assert answer.answer == triplet.answer
        assert union_iou(answer.boxes, triplet.boxes) == (1.0 if triplet.boxes else 0.0)


# --- outcomes


def test_outcomes_survive_packing():
    question = held_out(["count"], 1)[0]
    values = [(True, 0.5, 1.0, 61), (False, None, None, 300), (True, 0.004, 0.668, 3)]
    found = [Outcome(question, "", (), right, True, right, True, n, iou, f1) for right, iou, f1, n in values]
    kept = packed(found)
    assert unpack_bits(kept["correct"], 3).tolist() == [1, 0, 1]
    assert unpack_bits(kept["correct_lenient"], 3).tolist() == [1, 1, 1]
    assert unpack_bits(kept["boxed"], 3).tolist() == [1, 0, 1]
    assert unpack_levels("iou", kept["iou"]).tolist() == pytest.approx([0.5, 0, 0.004], abs=0.002)
    assert unpack_levels("tokens", kept["tokens"]).tolist() == [61, 255, 3]
    assert summary(found)["iou"] == pytest.approx(0.252)
    many = np.random.default_rng(0).random(250) < 0.5
    assert (unpack_bits(pack_bits(many), 250) == many).all()


def test_the_questions_to_choose_by_are_others_than_those_that_measure():
    test, validation = (held_out_questions(0.02, split) for split in ("test", "validation"))
    assert test.sha256 != validation.sha256
    assert {"more/count", "new_pairs/relation"} <= test.sets.keys()
    assert not [name for name in validation.sets if name.startswith(("more", "smaller", "new_pairs"))]
    first = [one.image.tobytes() for one in held_out(["relation", "count"], 5)]
    assert not [one for asked in test.sets.values() for one in asked if one.image.tobytes() in first]


def test_the_smallest_share_leaves_two_scenes_of_each_kind_so_that_there_is_an_interval():
    assert {len({*scenes}) for scenes in held_out_questions(0.0001).scenes.values()} == {2}


# --- results and runs


def test_a_row_is_missing_if_there_is_none_or_it_failed_or_its_recipe_is_another(tmp_path):
    study = load_study()
    jobs = study.jobs(["beta/0"])
    rows = [identity(study, arm, seed) for arm, seed in jobs]

    def seeds_to_go():
        return [seed for _, seed in results.missing(results.read(tmp_path)[1], study, jobs)]

    results.begin(tmp_path, {"scenes": {}, "weights_sha256": "a"})
    results.append(tmp_path, rows[0])
    results.append(tmp_path, {**rows[1], "error": "exit code 6"})
    results.append(
        tmp_path, {**rows[2], "recipe": {**rows[2]["recipe"], "steps": 59}}
    )  # the study's recipe was another
    with (tmp_path / results.RESULTS).open("a") as file:
        file.write('{"arm": "torn')
    assert seeds_to_go() == [1, 2]
    del rows[1]["recipe"]["judge"]  # a row from before there was this key, which has its default
    results.append(tmp_path, rows[1])
    assert seeds_to_go() == [2]
    results.append(tmp_path, {**rows[1], "recipe": {**rows[1]["recipe"], "gone": 1}})
    assert seeds_to_go() == [1, 2]
    with pytest.raises(DataError, match="weights_sha256"):
        results.begin(tmp_path, {"scenes": {}, "weights_sha256": "b"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of an arm that trains for two steps and one that cannot, carried out."""
    folder = tmp_path_factory.mktemp("lab")
    study = study_file(folder, {"short": SMALL, "broken": f"{SMALL}, data: nowhere.jsonl"})
    options = ["--study", study, "--output", folder / "out", "--scratch", folder / "scratch", "--share", "0.012"]
    return folder, [str(option) for option in options], main([str(option) for option in options])


def test_a_run_leaves_a_row_with_measures_and_a_failed_one_its_error(finished):
    folder, _, code = finished
    _, rows = results.read(folder / "out")
    broken, short = sorted(rows, key=lambda row: row["arm"])
    assert code == 1
    assert "There is no data at nowhere.jsonl" in broken["error"]
    assert "error" not in short
    assert short["measures"]["relation"]["n"] == 3
    assert short["outcomes"]["faithfulness"]["n"] == 3
    assert short["train"]["curve"]["step"] == [2]
    assert short["train"]["cpu_seconds"] > 0
    assert short["recipe"]["steps"] == 2
    assert short["settings"]["steps"] == 2


def test_a_second_call_runs_only_what_failed(finished, monkeypatch, capsys):
    _, options, _ = finished
    started = []
    monkeypatch.setattr("benchmarks.lab.jobs.Jobs._one", lambda self, arm, seed: started.append(arm.id) or True)
    assert main(options) == 0
    assert started == ["test/broken"]
    assert "1 of 2 runs are there, 1 to go" in capsys.readouterr().out


def test_a_run_of_other_code_is_not_gone_on_with(finished, tmp_path, monkeypatch):
    folder, options, _ = finished
    monkeypatch.setattr("benchmarks.lab.jobs.commit", lambda: "0123abc+")
    monkeypatch.setattr("benchmarks.lab.jobs.Jobs._one", lambda self, arm, seed: scratch.append(self._folder))
    scratch = []
    main([*options, "--output", str(tmp_path)])
    assert len(scratch) == 2
    assert scratch[0].parent == folder / "scratch"
    assert not scratch[0].exists()


def test_a_run_that_was_killed_goes_on_to_the_same_adapter(finished, tmp_path):
    folder, _, _ = finished
    study = load_study(folder / "study.yaml")
    arm = next(arm for arm in study.arms() if arm.name == "short")
    whole = next((folder / "scratch").glob("*/test/short/seed-0-*"))
    killed = tmp_path / "test" / "short" / whole.name
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "adapter")
    shutil.rmtree(killed / "checkpoints" / "step-000002")
    (killed / "run.json").write_text(json.dumps({**json.loads((killed / "run.json").read_text()), "status": "running"}))
    adapter, facts = training.train(study, arm, 0, tmp_path)
    name = "adapter_model.safetensors"
    assert facts["resumed"] is True
    assert (adapter / name).read_bytes() == (whole / "adapter" / name).read_bytes()
    assert list(read_rows(killed / "metrics.jsonl")) == list(read_rows(whole / "metrics.jsonl"))
    changed = replace(arm, settings={**arm.settings, "steps": 1})
    adapter, facts = training.train(study, changed, 0, tmp_path)
    assert (facts["steps"], facts["resumed"], adapter.parent == killed) == (1, False, False)


def test_fine_tuning_takes_chains_or_bare_answers_and_leaves_an_adapter(tmp_path, monkeypatch):
    from trl import SFTTrainer

    seen = {}

    class Watched(SFTTrainer):
        def __init__(self, train_dataset, **options):
            seen[len(seen)] = train_dataset[0]
            super().__init__(train_dataset=train_dataset, **options)

    monkeypatch.setattr("trl.SFTTrainer", Watched)
    path = study_file(tmp_path, {name: f"{SMALL}, method: {name}" for name in ("sft", "sft-direct")})
    study = load_study(path)
    adapters = [training.train(study, arm, 0, tmp_path)[0] for arm in study.arms()]
    chain, answer = (seen[number]["completion"][0]["content"] for number in (0, 1))
    prompts = [seen[number]["prompt"][0]["content"] for number in (0, 1)]
    triplet = next(one for one in load("embedded").triplets if one.question in prompts[1])
    assert answer == triplet.answer
    assert chain == {one.id: text for one, text in triplets.embedded_with_chains()}[triplet.id]
    assert ("<think>" in prompts[0], "<think>" in prompts[1]) == (True, False)
    weights = [(adapter / "adapter_model.safetensors").read_bytes() for adapter in adapters]
    assert weights[0] != weights[1]


# --- statistics on made-up rows


def values(table, scenes=None, counts=None, seeds=None, is_share=False):
    table = np.asarray(table, dtype=float)
    seeds = tuple(range(len(table))) if seeds is None else seeds
    counts = np.ones(table.shape[1]) if counts is None else np.asarray(counts, dtype=float)
    scenes = np.arange(table.shape[1]) if scenes is None else np.asarray(scenes)
    return Values(table, seeds, counts, scenes, is_share)


def test_an_interval_of_one_seed_is_that_of_its_scenes():
    right = np.random.default_rng(0).random((1, 400)) < 0.8
    interval = values(right).interval()
    error = np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert interval.value == pytest.approx(right.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.97 * error, rel=0.01)
    assert values(right, is_share=True).interval()[:3] == pytest.approx(share(right[0].tolist())[:3], abs=1e-3)


def test_all_right_is_as_sure_as_there_are_scenes():
    right = np.ones((5, 60))
    assert values(right, is_share=True).interval()[:3] == pytest.approx(wilson(60, 60)[:3])
    together = values(right, np.repeat(np.arange(30), 2), is_share=True).interval()
    assert together[:3] == pytest.approx(wilson(30, 30)[:3])


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("of_seed", "of_scene"), [(1.0, 0.05), (0.05, 1.0), (1.0, 1.0)])
def test_the_interval_covers_the_truth_though_seeds_are_few(seeds, of_seed, of_scene):
    rng, covered = np.random.default_rng(seeds), 0
    for _ in range(400):
        table = of_seed * rng.normal(size=(seeds, 1)) + of_scene * np.sqrt(20) * rng.normal(size=(1, 20))
        low, high = values(table + rng.normal(size=(seeds, 20))).interval()[1:3]
        covered += low <= 0 <= high
    assert covered / 400 > 0.92


@pytest.mark.parametrize("seeds", [3, 5])
def test_where_nothing_differs_a_small_p_is_as_rare_as_it_says(seeds):
    rng = np.random.default_rng(seeds)
    tables = (3 * rng.normal(size=(seeds, 1)) + np.sqrt(20) * rng.normal(size=(1, 20)) for _ in range(2000))
    p = np.array([values(table + rng.normal(size=(seeds, 20))).p() for table in tables])
    assert (p < 0.05).mean() < 0.06
    assert (p < 0.005).mean() < 0.007


def test_questions_about_one_scene_count_as_one_draw():
    right = np.repeat(np.random.default_rng(0).random(100) < 0.5, 4)[None]
    alone, together = values(right).interval(), values(right, np.repeat(np.arange(100), 4)).interval()
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(2, rel=0.1)


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not_narrow_it():
    row = np.random.default_rng(0).random(400) < 0.7
    one, same = values([row]).interval(), values([row] * 5).interval()
    assert same == pytest.approx(one)
    apart = values([np.full(400, level) for level in (0.5, 0.6, 0.7, 0.8, 0.9)]).interval()
    assert apart.value == pytest.approx(0.7)
    assert apart.high - apart.low == pytest.approx(2 * 2.776 * np.sqrt(0.025 / 5), rel=0.001)  # t with 4 degrees


def test_questions_without_the_measure_do_not_count():
    found = values([[1, 9, 0.5, 9], [1, 9, 0.5, 9]], counts=[1, 0, 1, 0])
    assert found.interval()[::3] == (0.75, 2)
    assert found.interval() == pytest.approx(values([[1, 0.5], [1, 0.5]]).interval())
    assert found.by_seed.tolist() == [0.75, 0.75]


def test_a_difference_is_paired_by_seed_and_question():
    level = np.random.default_rng(0).random(200) < 0.5
    a, b = values([level, level], seeds=(1, 2)), values([level, level, 1 - level], seeds=(1, 2, 3))
    gap = a.minus(b)
    assert gap.seeds == (1, 2)
    assert gap.interval()[:3] == (0, 0, 0)
    assert gap.p() == 1.0
    assert a.above_untrained(values([level])).mean == 0
    assert a.above_untrained(values([np.zeros(200)])).mean == a.mean
    with pytest.raises(DataError, match="no seed in common"):
        a.minus(values([level], seeds=(0,)))


def test_a_clear_difference_has_a_small_p_and_none_has_a_large_one():
    rng = np.random.default_rng(0)
    a, b, c = (values(rng.random((3, 300)) < share) for share in (0.9, 0.5, 0.5))
    assert a.minus(b).p() < 0.01  # three seeds never say more
    more = (values(rng.random((5, 300)) < share) for share in (0.9, 0.5))
    assert next(more).minus(next(more)).p() < 1e-4
    assert b.minus(c).p() > 0.05
    alone = values(rng.normal(0.2, 1, (1, 50)))
    assert alone.p() == pytest.approx(ttest_1samp(alone.table[0], 0).pvalue)


# --- target and page


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A results file of the whole study, a few questions each, and one run that failed."""
    folder = tmp_path_factory.mktemp("made-up")
    study = load_study()
    chance = {"untrained": 0.5, "beta": 0.5, "draw": 0.5}
    results.begin(folder, lab_rows.header(120))
    for made in lab_rows.made_up(study, 120, chance=lambda arm: chance.get(arm.group, 0.98)):
        failed = {"error": "exit code 6: diverged"} if (made["arm"], made["seed"]) == ("loss/gspo", 2) else {}
        results.append(folder, made | failed)
    return folder, Results(*results.read(folder))


def test_arms_are_compared_with_the_one_of_their_group_over_the_seeds_that_both_have(made_up):
    _, found = made_up
    compared = compare(found, "correct", ["relation"], load_study().held_against())
    assert not {DEFAULT, "untrained/direct"} & compared.keys()
    assert compared["triplets/5"].difference.value == pytest.approx(0.48, abs=0.1)  # against an arm that is half right
    assert compared["beta/0"].difference.value == pytest.approx(-0.48, abs=0.1)
    assert compared["beta/0"].difference.high < 0
    assert compared["beta/0"].p < 0.1  # of three seeds
    assert compared["triplets/5"].p < 0.02  # of five
    assert compared["rewards/grit-code"].p > 0.05
    assert (compared["beta/0"].seeds, compared["rewards/grit-code"].seeds, compared["loss/gspo"].seeds) == (3, 5, 2)


def test_the_target_names_what_is_not_met(made_up, capsys):
    folder, found = made_up
    assert main(["target", "--output", str(folder)]) == 0
    assert "5 of 5 seeds meet all of it; 5 are asked for." in capsys.readouterr().out
    seeds = {(one.seed, one.what): one.met for one in target.checks(found, "beta/0")}
    assert seeds["0", "valid format"]
    assert not seeds["0", "position-relation accuracy"]
    assert not seeds["all seeds", "relation above untrained, at its best"]


def test_four_good_seeds_are_not_enough(made_up):
    _, found = made_up
    assert target.report(found)[1]
    four = [row for rows in found.rows.values() for row in rows if (row["arm"], row["seed"]) != (DEFAULT, 4)]
    text, met = target.report(Results(found.header, four))
    assert "4 of 4 seeds meet all of it" in text
    assert not met


def test_a_run_of_more_than_ten_minutes_misses_the_target(made_up):
    _, found = made_up
    rows = [row for rows in found.rows.values() for row in rows]
    slow = [row | {"train": row["train"] | {"wall_seconds": 601}} if row["arm"] == DEFAULT else row for row in rows]
    missed = {one.what for one in target.checks(Results(found.header, slow)) if not one.met}
    assert missed == {"minutes to train"}


@pytest.mark.parametrize(
    ("lost", "gained", "met"),
    [
        (3, 2, True),
        (20, 0, False),  # shown to be lower, if only by two points
        (400, 400, False),  # as good on average, but nobody knows
    ],
)
def test_counting_is_kept_if_it_is_not_shown_to_be_lower_and_is_shown_not_to_be_lower_by_much(lost, gained, met):
    gap = values([[-1] * lost + [1] * gained + [0] * (1000 - lost - gained)])
    assert target._no_loss("0", "counting", gap).met is met


def test_wrong_boxes_have_to_take_more_than_half_of_what_was_gained_on_the_same_questions(made_up):
    _, found = made_up
    before, after = (found.faithful(DEFAULT, name).table for name in ("unchanged", "wrong_boxes"))
    best = found.best_untrained("relation")
    asked = {arm: found.values(arm, "correct_lenient", ["relation"]).mean for arm in found.untrained()}
    assert asked[best] == max(asked.values()) > min(asked.values())
    assert not found.values(best, "correct", ["relation"]).table.any()
    floor = found.values(best, "correct_lenient", ["relation"]).table[:, : before.shape[1]]
    taken = (before - after).mean() - 0.5 * (before - floor).mean()
    assert target.differences(found, DEFAULT)["hangs on boxes"].mean == pytest.approx(taken)
    assert taken == pytest.approx(0.49 - 0.5 * 0.48, abs=0.1)


def test_the_page_is_made_of_the_rows_alone(made_up, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder, found = made_up
    assert main(["page", "--output", str(folder), "--docs", str(tmp_path)]) == 0
    text = (tmp_path / "lab.md").read_text()
    figures = {path.name for path in (tmp_path / "lab").iterdir()}
    assert figures == {"curves.svg", "triplets.svg", "arms.svg", "faithfulness.svg"}
    assert all(f"(lab/{name})" in text for name in figures)
    assert all(f"`{arm}`" in text for arm in found.rows)
    accuracy = found.values("beta/0.01", "correct", ["count"]).interval()
    assert f"{100 * accuracy.value:.1f} ({100 * accuracy.low:.1f}–{100 * accuracy.high:.1f})" in text
    assert "| 1.5 | 77 | 80 |" in text  # trained, as a multiple of measuring, in CPU seconds and by the clock
    assert "`loss/gspo` seed 2: exit code 6: diverged" in text
    assert "Scenes that pre-training never saw" not in text  # they were not asked
    again = [path.read_bytes() for path in sorted((tmp_path / "lab").iterdir())]
    main(["page", "--output", str(folder), "--docs", str(tmp_path)])
    assert [path.read_bytes() for path in sorted((tmp_path / "lab").iterdir())] == again


def test_an_arm_that_is_not_asked_for_the_form_stands_in_no_figure_of_it(made_up):
    pytest.importorskip("matplotlib")
    from benchmarks.lab.figures import arms

    _, found = made_up
    figure = arms(found, load_study())
    shown = {axes.get_title(): sum(line.get_marker() != "None" for line in axes.lines) for axes in figure.axes}
    trained = len(found.rows) - len(found.untrained())
    assert shown == {
        "relation, right in %": trained,
        "count, right in %": trained,
        "samples of valid format in %": trained - 1,  # but fine-tuning/answers
    }


def test_an_arm_that_is_not_asked_for_the_form_is_not_compared_by_it(made_up):
    compared = Tables(made_up[1], load_study()).comparisons
    trained = {arm for arm in made_up[1].rows if not arm.startswith(("untrained/", DEFAULT))}
    assert compared["right samples"].keys() == trained
    assert compared["valid samples"].keys() == trained - {"fine-tuning/answers"}


def test_the_numbers_of_sentences_are_those_of_the_rows(made_up):
    folder, _ = made_up
    found, n = Results(*results.read(folder)), 120
    tables, rows = Tables(found, load_study()), found.rows["beta/0"]
    rows[1]["outcomes"]["sampled/count"]["valid_format"] = pack_bits(np.arange(n) % 3 > 0)
    for name in ("sampled/relation", "sampled/count"):
        found.rows["untrained/grounded"][0]["outcomes"][name]["valid_format"] = pack_bits(np.arange(n) % 5 == 0)
    assert tables.rough_model(1.0) == ("0.200", *(f"{number:.2f}" for number in where_samples_stop(0.2, 1.0)))

    def outcome(row, name, measure):
        return unpack_bits(row["outcomes"][name][measure], n)

    sampled = [(row, name) for row in rows for name in ("sampled/relation", "sampled/count")]
    valid = sum(outcome(*one, "valid_format").sum() for one in sampled)
    right = sum((outcome(*one, "valid_format") & outcome(*one, "correct")).sum() for one in sampled)
    assert tables.of_valid("beta/0") == (right, valid)
    assert f"| {100 * right / valid:.1f} of {valid} |" in tables.samples(load_study().groups[6])
    relation = np.concatenate([outcome(row, "relation", "correct") for row in rows])
    all_found = np.concatenate([unpack_levels("f1", row["outcomes"]["relation"]["f1"]) == 1 for row in rows])
    assert tables.right_by_boxes("beta/0", found=True) == f"{100 * relation[all_found].mean():.1f}"
    assert tables.right_by_boxes("beta/0", found=False) == f"{100 * relation[~all_found].mean():.1f}"
    by_seed = [f"{100 * outcome(row, 'count', 'correct').mean():.1f}" for row in rows]
    assert tables.each_seed("beta/0", "count") == ", ".join(by_seed)
    curves = [row["train"]["curve"] for row in rows]
    assert {curve["step"][3] for curve in curves} == {20}
    assert tables.while_training("beta/0", 20) == f"{100 * np.mean([curve['valid_format'][3] for curve in curves]):.0f}"


@pytest.mark.parametrize("p0", [0.05, 0.12, 0.147])
def test_the_rough_model_stops_where_pull_and_hold_are_equal_or_nowhere(p0):
    def pull(p):
        return 1 / np.sqrt(p * (1 - p))

    def hold(p, beta):
        return beta * (np.log(p / (1 - p)) - np.log(p0 / (1 - p0)))

    stop, least = where_samples_stop(p0, 1.0)
    assert pull(stop) == pytest.approx(hold(stop, 1.0), rel=1e-3)
    assert all(pull(p) > hold(p, 1.0) for p in np.linspace(p0 + 1e-3, stop - 1e-3, 50))
    assert where_samples_stop(p0, least * 1.001)[0] < 1 == where_samples_stop(p0, least * 0.999)[0]


def test_the_interval_of_an_overlap_does_not_leave_what_an_overlap_can_be():
    assert decimals(Interval(0.004, -0.003, 0.011, 9)) == "0.00 (0.00–0.01)"
    assert decimals(Interval(0.98, 0.94, 1.02, 9)) == "0.98 (0.94–1.00)"


def test_on_the_harder_splits_the_untrained_model_is_read_leniently():
    study, n = load_study(), 40
    sets = (*lab_rows.KINDS, *(f"{split}/{kind}" for split in HARDER_SPLITS for kind in ("relation", "count")))
    found = Results(lab_rows.header(n, sets), lab_rows.made_up(study, n, sets))
    lines = Tables(found, study).harder(["untrained/grounded", DEFAULT]).splitlines()
    right = found.values("untrained/grounded", "correct_lenient", ["more/relation"]).mean
    assert not found.values("untrained/grounded", "correct", ["more/relation"]).table.any()
    assert lines[2].startswith(f"| `untrained/grounded` | {100 * right:.1f} (")
    assert lines[0].count("IoU") == len(HARDER_SPLITS)
    assert {line.count("|") for line in lines} == {1 + 1 + 3 * len(HARDER_SPLITS)}


def test_a_column_that_no_arm_has_is_left_out(made_up):
    _, found = made_up
    tables = Tables(found, load_study())
    groups = {group.name: group for group in load_study().groups}
    assert "− first" in tables.answers(groups["beta"])
    assert "− first" not in tables.answers(groups["untrained"])
    assert "| `untrained/direct` | – |" in tables.samples(groups["untrained"])  # the others have the form


def test_the_page_and_the_table_of_the_readme_are_those_of_the_committed_rows():
    pytest.importorskip("matplotlib")
    from benchmarks.lab.headline import BEGIN, END, headline
    from benchmarks.lab.page import read_results, render

    study = load_study()
    found = read_results(OUTPUT, study)
    docs = ROOT / "docs"
    figures = {path.stem: path.relative_to(docs).as_posix() for path in (docs / "lab").glob("*.svg")}
    assert (docs / "lab.md").read_text() == render(found, study, figures, "../benchmarks/results/lab/results.jsonl")
    assert f"{BEGIN}\n{headline(found, study)}\n{END}" in (ROOT / "README.md").read_text()


def test_what_a_row_says_in_numbers_is_what_its_outcomes_say():
    _, rows = results.read(OUTPUT)
    for row in rows:
        for name, of_set in row["outcomes"].items():
            said, key = row["measures"][name], "unchanged" if name == "faithfulness" else "correct"
            share = unpack_bits(of_set[key], of_set["n"]).mean()
            assert share == pytest.approx(said.get("accuracy", said.get("unchanged")), abs=1e-4)


def test_rows_of_what_the_study_has_no_more_are_left_out():
    study = load_study()
    rows = lab_rows.made_up(study, 5)
    changed = {**rows[0], "recipe": rows[0]["recipe"] | {"steps": 7}}
    assert (
        results.of_study([*rows[1:], changed, {**rows[1], "arm": "gone/arm"}, {**rows[1], "seed": 99}], study)
        == rows[1:]
    )


def test_a_group_that_is_held_against_no_arm_is_refused(tmp_path):
    path = study_file(tmp_path, {"one": "beta: 0.1"})
    path.write_text(path.read_text().replace("    seeds:", "    against: no/arm\n    seeds:"))
    with pytest.raises(RecipeError, match="no/arm, which is no arm"):
        load_study(path)


def test_a_page_without_the_rows_that_all_stand_beside_is_refused(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    results.begin(tmp_path, lab_rows.header(3))
    assert main(["page", "--output", str(tmp_path), "--docs", str(tmp_path)]) == 3
    assert "--only default untrained" in capsys.readouterr().err
    assert main(["target", "--output", str(tmp_path / "nowhere")]) == 3


def test_the_untrained_model_is_at_its_best_only_if_all_ways_to_ask_it_were_measured(made_up, tmp_path, capsys):
    _, found = made_up
    results.begin(tmp_path, found.header)
    for row in (row for arm, rows in found.rows.items() if arm != "untrained/direct" for row in rows):
        results.append(tmp_path, dict(row))
    assert main(["target", "--output", str(tmp_path)]) == 3
    assert "no rows of untrained/direct," in capsys.readouterr().err
