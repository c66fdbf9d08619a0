"""Whole steps of the trainer that shares prompts, against TRL's own: the same tokens, loss, gradient and weights."""

import gc

import pytest
import torch
from sampled_elsewhere import Elsewhere
from shared_prompt_cases import (
    FAMILIES,
    LANGUAGE,
    LOGP,
    ONE,
    TEMPERATURE,
    TEXT,
    TWO,
    VISION,
    WIDE,
    Ask,
    distance,
    grpo_trainer,
    load_model,
    load_processor,
    lora,
    model_folder,
    relative,
)
from trl import GRPOTrainer
from trl.trainer import grpo_trainer as trl_module

from grit_lite import families
from grit_lite.packing import PACKED, Schedule
from grit_lite.sharing import share_prompts

QWEN = FAMILIES[:2]
STEP = 1e-5  # relative
# Where importance ratios weigh the tokens: they are exponentials of differences, and a loss of them nearly cancels.
RATIOS = 1e-4
ENDS = list(range(100, 200))  # so many that some completions of a random model end before the limit
ASKS = (ONE, TWO)
THREE = Ask("How so?", ((84, 84), (56, 56), (112, 56)), seed=30)


@pytest.fixture(scope="module", autouse=True)
def quick_garbage():
    """Every trainer collects garbage; with all that the imports made out of its sight, that takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", params=QWEN)
def folder(request, tmp_path_factory):
    return model_folder(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def deepstack(tmp_path_factory):
    return model_folder(tmp_path_factory, "qwen3_vl")


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
    return model_folder(tmp_path_factory, "internvl")


def by_tokens(completion_ids, **_):
    return [sum(ids) % 11 / 11 for ids in completion_ids]


def first_group_alike(completion_ids, **_):
    return [0.5] * 4 + by_tokens(completion_ids[4:])


def all_alike(completion_ids, **_):
    return [0.5] * len(completion_ids)


class Trained:
    """A trainer after its training, and what came of it.

    Attributes:
        tokens: the completions of each step.
        logs: what TRL logged of each step.
        change: of all trained weights in one row.
    """

    def __init__(
        self,
        folder,
        base,
        *,
        asks=ASKS,
        evaluated=(),
        reward=by_tokens,
        parts=LANGUAGE,
        keep_reference=False,
        **options,
    ):
        self.model = load_model(folder, parts)
        self.model.generation_config.eos_token_id = options.pop("ends", ENDS)
        self.tokens = []

        def keeping(completion_ids, **columns):
            self.tokens.append(completion_ids)
            return reward(completion_ids, **columns)

        # Plain descent: Adam would make a step of the same length out of rounding, where the gradient is next to zero.
        settings = {"max_steps": 1, "max_completion_length": 8, "optim": "sgd", "learning_rate": 0.1, "beta": 0.0}
        settings |= {"lr_scheduler_type": "constant", "generation_kwargs": {"suppress_tokens": unwanted(folder)}}
        rows = [ask.row() for ask in asks]
        options["evaluated"] = [ask.row() for ask in evaluated]
        self.trainer = grpo_trainer(self.model, folder, rows, base=base, reward=keeping, **{**settings, **options})
        if not keep_reference and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")  # then the reference is the model without adapter, and the KL is not 0
        before = self.weights()
        self.runs = watch(self.trainer.vlm) if hasattr(self.trainer, "vlm") else []
        torch.manual_seed(5)
        self.trainer.train()
        self.change = self.weights() - before
        self.logs = [entry for entry in self.trainer.state.log_history if "loss" in entry]

    def weights(self):
        return torch.cat([weight.detach().flatten() for weight in lora(self.model).values()]).clone()


def unwanted(folder):
    tokenizer = load_processor(folder).tokenizer
    known = tokenizer.get_vocab()
    vision = {token for family in families.FAMILIES.values() for token in family.vision_tokens}
    return [tokenizer.pad_token_id, *sorted(known[token] for token in vision if token in known)]


def watch(vlm):
    """(prompts, followers) of each row that goes through the language model with a gradient."""
    calls, run = [], vlm.run

    def counted(layout, prompts=(), followers=()):
        if torch.is_grad_enabled():
            calls.append((len(prompts), len(followers)))
        return run(layout, prompts, followers)

    vlm.run = counted
    return calls


def both(folder, schedule=PACKED, **options):
    """TRL's trainer and ours after the same training."""
    return Trained(folder, GRPOTrainer, **options), Trained(
        folder, share_prompts(GRPOTrainer), schedule=schedule, **options
    )


OF_A_STEP = ("loss", "grad_norm", "reward", "completions/mean_length", "num_tokens")
OF_A_PASS = ("kl", "entropy")  # whose mean over a step depends on how its rows are divided


def assert_equal(stock, ours, *, one_pass=True, step=STEP):
    assert ours.tokens == stock.tokens
    assert len(ours.logs) == len(stock.logs)
    # Without a KL, completions whose advantage is 0 are not run, and then their entropy is not known.
    names = (*OF_A_STEP, *OF_A_PASS) if one_pass and "kl" in stock.logs[0] else OF_A_STEP
    for our_log, log in zip(ours.logs, stock.logs, strict=True):
        expected = {name: log[name] for name in names if name in log}  # a step on older completions has no rewards
        assert {name: our_log[name] for name in expected} == pytest.approx(expected, rel=step, abs=1e-7)
    if stock.change.any():
        assert relative(ours.change, stock.change) <= step
    else:
        assert not ours.change.any()


def assert_not_idle(stock):
    """A step in which there was something to compare."""
    assert stock.change.abs().max() > 1e-4
    assert len({len(row) for row in stock.tokens[0]}) > 1


# beta, rows of a micro-batch, gradient checkpointing
STEPS = [(0.0, 8, False), (0.04, 8, True), (0.0, 4, True), (0.04, 4, False), (0.04, 2, True)]


@pytest.mark.parametrize(("beta", "rows", "checkpointing"), STEPS)
def test_a_step_is_trls(folder, beta, rows, checkpointing):
    parts = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 8 // rows}
    stock, ours = both(folder, beta=beta, gradient_checkpointing=checkpointing, loss_type="grpo", **parts)
    assert_not_idle(stock)
    assert_equal(stock, ours, one_pass=rows == 8)


SCHEDULES = [Schedule(at_once=3), Schedule(staged=True), Schedule(staged=True, at_once=3)]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["rows of 3", "one by one", "three at once"])
def test_a_step_of_another_schedule_is_trls(deepstack, schedule, checkpointing):
    stock, ours = both(deepstack, schedule, beta=0.04, gradient_checkpointing=checkpointing)
    assert_not_idle(stock)
    assert_equal(stock, ours)


@pytest.mark.parametrize("loss", ["dapo", "dr_grpo", "bnpo"])
def test_a_step_of_another_loss_is_trls(deepstack, loss):
    assert_equal(*both(deepstack, loss_type=loss, beta=0.04))


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.7}, {"temperature": 1.3}], ids=str)
def test_a_step_of_another_way_of_sampling_is_trls(deepstack, options):
    stock, ours = both(deepstack, **options)
    assert stock.tokens != Trained(deepstack, GRPOTrainer).tokens
    assert_equal(stock, ours)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_a_step_of_internvl_is_trls(internvl, beta):
    stock, ours = both(internvl, beta=beta)
    assert_not_idle(stock)
    assert_equal(stock, ours)


def test_a_step_with_prompts_of_text_is_trls(deepstack):
    assert_equal(*both(deepstack, asks=(TEXT, Ask("How so?")), beta=0.04))


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_a_step_that_trains_the_vision_tower_is_trls(folder, beta):
    assert_equal(*both(folder, parts=[*VISION, *LANGUAGE], beta=beta))


def test_a_copy_of_the_adapter_can_be_the_reference(deepstack):
    stock, ours = both(deepstack, beta=0.04, keep_reference=True)
    assert "ref" in ours.model.peft_config
    assert ours.logs[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert_equal(stock, ours)


@pytest.fixture
def in_order(monkeypatch):
    """TRL's trainer too leaves the rows of a batch in their order, and the random numbers to the sampling."""
    monkeypatch.setattr(trl_module, "shuffle_sequence_dict", lambda batch: batch)


@pytest.mark.parametrize("rows", [8, 4])
def test_further_steps_are_trls(folder, in_order, rows):
    stock, ours = both(
        folder,
        asks=(ONE, TWO, WIDE, THREE),
        max_steps=3,
        beta=0.04,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=8 // rows,
    )
    assert len(stock.tokens) == 3
    assert_equal(stock, ours)


def test_steps_on_older_completions_are_trls(deepstack, in_order):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    stock, ours = both(deepstack, asks=(ONE, TWO, WIDE, THREE), max_steps=4, num_iterations=2, **options)
    assert len(stock.tokens) == 1
    assert_equal(stock, ours, step=RATIOS)


def test_an_evaluation_between_steps_on_the_same_completions_changes_nothing(deepstack, in_order):
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    evaluations = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
    asks = (ONE, TWO, WIDE, THREE)
    stock, ours = both(deepstack, asks=asks, max_steps=2, **parts, **evaluations, evaluated=(THREE, WIDE))
    assert [len(rows) for rows in stock.tokens] == [16, 2, 2]
    assert_equal(stock, ours)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_an_evaluation_with_groups_of_another_size_is_trls(deepstack, in_order, group):
    options = {"num_generations_eval": group, "per_device_eval_batch_size": 2 * group, "beta": 0.04}
    stock, ours = both(deepstack, eval_strategy="steps", eval_steps=1, **options, evaluated=(THREE, WIDE))
    losses = [trained.trainer.state.log_history[-2]["eval_loss"] for trained in (stock, ours)]
    assert losses[1] == pytest.approx(losses[0], rel=STEP, abs=1e-7)
    assert [len(rows) for rows in stock.tokens] == [8, 2 * group]
    assert_equal(stock, ours)


# Completions that teach nothing


def test_groups_without_advantage_are_not_run(folder):
    stock, ours = both(folder, reward=first_group_alike)
    assert ours.runs == [(1, 4)]
    assert_not_idle(stock)
    assert_equal(stock, ours)


def test_the_entropy_that_is_logged_is_that_of_the_completions_that_were_run(folder, in_order):
    """Which TRL's own trainer says of them, where they are alone in a step."""

    class Noting(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, *rest, **fields):
            scored = super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, *rest, **fields)
            mask = attention_mask[:, -scored[1].shape[1] :].bool()
            self.entropy_of_the_second_group = scored[1][4:][mask[4:]].mean().item()
            return scored

    stock = Trained(folder, Noting, reward=first_group_alike)
    ours = Trained(folder, share_prompts(GRPOTrainer), reward=first_group_alike)
    assert ours.logs[0]["entropy"] == pytest.approx(stock.trainer.entropy_of_the_second_group, rel=STEP)
    assert ours.logs[0]["entropy"] != pytest.approx(stock.logs[0]["entropy"], rel=10 * STEP)


def test_groups_without_advantage_are_run_where_the_entropies_of_all_are_compared(deepstack):
    stock, ours = both(deepstack, reward=first_group_alike, top_entropy_quantile=0.5)
    assert ours.runs == [(2, 8)]
    assert_equal(stock, ours)


def test_groups_without_advantage_are_run_for_their_divergence(deepstack):
    stock, ours = both(deepstack, reward=first_group_alike, beta=0.04)
    assert ours.runs == [(2, 8)]
    assert_equal(stock, ours)


@pytest.mark.parametrize("schedule", [PACKED, Schedule(staged=True)], ids=["packed", "staged"])
@pytest.mark.parametrize("reward", [first_group_alike, all_alike], ids=["micro-batch", "step"])
def test_without_any_advantage_the_gradient_is_zero(deepstack, reward, schedule):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    stock, ours = both(deepstack, schedule, reward=reward, **options)
    assert len(ours.runs) == 0 if reward is all_alike else ours.runs
    assert stock.change.any() == (reward is not all_alike)
    assert_equal(stock, ours)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_truncated_completions_can_be_left_out(folder, beta):
    stock, ours = both(folder, mask_truncated_completions=True, beta=beta, ends=ENDS[:30])
    lengths = [len(row) for row in stock.tokens[0]]
    truncated = sum(row[-1] not in ENDS for row in stock.tokens[0])
    assert 0 < truncated < len(lengths)
    assert sum(followers for _, followers in ours.runs) == len(lengths) - truncated
    assert_equal(stock, ours)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_all_completions_may_be_truncated(deepstack, beta):
    stock, ours = both(deepstack, mask_truncated_completions=True, beta=beta, ends=[])
    assert not stock.change.any()
    assert ours.runs == []
    assert_equal(stock, ours)


# What is shared


@pytest.mark.parametrize(
    ("rows", "runs"), [(8, [(2, 8)]), (4, [(1, 4)] * 2), (2, [(1, 2)] * 4)], ids=["whole", "groups", "half groups"]
)
def test_groups_stay_together(deepstack, rows, runs):
    options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 8 // rows}
    assert Trained(deepstack, share_prompts(GRPOTrainer), beta=0.04, **options).runs == runs


def test_rows_in_any_order_share_their_prompts(deepstack):
    trainer = Trained(deepstack, share_prompts(GRPOTrainer)).trainer
    (batch,) = trainer._buffered_inputs
    parts = [torch.cat([batch[f"prompt_{part}"], batch[f"completion_{part}"]], dim=1) for part in ("ids", "mask")]
    length = batch["completion_ids"].shape[1]

    def scored(order):
        rows = [part[order] for part in parts]
        pixels = {"pixel_values": batch["pixel_values"][order]}
        return trainer._get_per_token_logps_and_entropies(trainer.model, *rows, length, **pixels)[:2]

    order = torch.tensor([5, 0, 7, 2, 1, 6, 4, 3])
    calls = watch(trainer.vlm)
    for mixed, straight in zip(scored(order), scored(torch.arange(8)), strict=True):
        assert straight.any(1).all()
        assert distance(mixed, straight[order]) <= LOGP
    assert calls == [(2, 8)] * 2


def test_prompts_are_tokenised_as_trl_does(deepstack):
    trainers = [
        grpo_trainer(load_model(deepstack), deepstack, [ask.row() for ask in ASKS], base=base)
        for base in (GRPOTrainer, share_prompts(GRPOTrainer))
    ]
    turns = [[{"role": "user", "content": parts(ask)}] for ask in (TWO, TEXT, ONE) for _ in range(4)]
    for trainer in trainers:
        trainer.model.train()
    (tokens, images, _), (our_tokens, numbers, fields) = [trainer._tokenize_prompts(turns) for trainer in trainers]
    assert our_tokens == tokens
    assert numbers == [[0]] * 4 + [[1]] * 4 + [[2]] * 4
    assert [len(own or []) for own in images] == [2] * 4 + [0] * 4 + [1] * 4
    assert fields == {}
    assert [prompt.tokens.tolist() for prompt in trainers[1].prompts["train"]] == tokens[::4]


def parts(ask):
    return [*({"type": "image", "image": image} for image in ask.images()), {"type": "text", "text": ask.question}]


def test_a_step_sees_every_picture_once_and_then_forgets_it(deepstack):
    calls = []

    class Watched(share_prompts(GRPOTrainer)):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            look = self.vlm.backbone.get_image_features
            self.vlm.backbone.get_image_features = lambda pixel_values, **fields: (
                calls.append((len(pixel_values), torch.is_grad_enabled())),
                look(pixel_values, **fields),
            )[1]

    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}
    trained = Trained(deepstack, Watched, beta=0.04, **options)
    processor = load_processor(deepstack)
    images = [image for ask in ASKS for image in ask.images()]
    pixels = len(processor.image_processor(images=images, return_tensors="pt")["pixel_values"])
    assert calls == [(pixels, False)]
    prompts = trained.trainer.prompts["train"]
    assert len(prompts) == 2
    assert not any(prompt.pixels for prompt in prompts)
    assert not any(level.requires_grad for prompt in prompts for level in prompt.features)


UNKNOWN = {
    "an entropy bonus": {"entropy_coef": 0.1},
    "min_p": {"min_p": 0.1},
    "a repetition penalty": {"repetition_penalty": 1.2},
    "generation_kwargs other than": {"generation_kwargs": {"min_new_tokens": 6}},
    "images in the log": {"log_completions": True, "log_multimodal": True},
}


@pytest.mark.parametrize("problem", UNKNOWN)
def test_settings_under_which_the_result_would_not_be_trls_are_refused(deepstack, problem):
    with pytest.raises(ValueError, match=f"prompts cannot be shared with {problem}"):
        Trained(deepstack, share_prompts(GRPOTrainer), **UNKNOWN[problem])


def test_dropout_is_refused(deepstack):
    model = load_model(deepstack)
    next(module for module in model.modules() if hasattr(module, "lora_dropout")).lora_dropout["default"] = (
        torch.nn.Dropout(0.1)
    )
    with pytest.raises(ValueError, match="prompts cannot be shared with dropout"):
        grpo_trainer(model, deepstack, [ONE.row()], base=share_prompts(GRPOTrainer))


def test_the_processor_is_back_in_its_place(deepstack):
    trained = Trained(deepstack, share_prompts(GRPOTrainer))
    assert type(trained.trainer.processing_class) is type(load_processor(deepstack))


def test_the_base_may_keep_its_own_rollout_and_the_step_is_the_same(folder):
    class OwnRollout(share_prompts(GRPOTrainer)):
        def __init__(self, **options):
            super().__init__(share_rollout=False, **options)

        def _sampling(self):
            raise AssertionError("the rollout was not left to the base")

    ours, stock = Trained(folder, OwnRollout, beta=0.04), Trained(folder, GRPOTrainer, beta=0.04)
    assert ours.tokens == stock.tokens
    assert float((ours.change - stock.change).norm() / stock.change.norm()) < STEP


def test_a_rollout_of_the_base_is_given_the_images_as_they_came(deepstack):
    """Another process that samples, such as a vLLM server, needs them."""
    seen = []

    class Noting(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids, images, *rest, **options):
            seen.append([[image.tobytes() for image in own] for own in images])
            return super()._generate_single_turn(prompt_ids, images, *rest, **options)

    class OwnRollout(share_prompts(Noting)):
        def __init__(self, **options):
            super().__init__(share_rollout=False, **options)

    Trained(deepstack, OwnRollout), Trained(deepstack, Noting)
    ours, stock = seen
    assert len(stock) == 8
    assert ours == stock


class Server(GRPOTrainer):
    """Hands out what TRL's own generation draws as a vLLM server would: with log-probabilities of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.use_vllm, self.vllm_mode = True, "server"  # only now, because the constructor would look for it

    def _generate_single_turn(self, *arguments, **options):
        assert self.use_vllm
        self.use_vllm = False
        tokens, _ = super()._generate_single_turn(*arguments, **options)
        self.use_vllm = True
        return tokens, [[-5.5 - 0.1 * (token % 3) for token in row] for row in tokens]


class Served(share_prompts(Server)):
    def __init__(self, **options):
        super().__init__(share_rollout=False, **options)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_a_step_on_what_a_server_samples_is_trls(deepstack, beta):
    ours, stock = Trained(deepstack, Served, beta=beta), Trained(deepstack, Server, beta=beta)
    assert_not_idle(stock)
    assert_equal(stock, ours, step=RATIOS)
    assert ours.trainer.sampler_gap == pytest.approx(stock.logs[0]["sampling/sampling_logp_difference/mean"])
    weights = [log["sampling/importance_sampling_ratio/mean"] for log in (ours.logs[0], stock.logs[0])]
    assert weights[0] == pytest.approx(weights[1], rel=1e-4)
    assert 0.05 < weights[1] < 3


def sampling_elsewhere(offset=0.0):
    class SampledElsewhere(share_prompts(GRPOTrainer)):
        def __init__(self, **options):
            engine = Elsewhere(options["model"], options["processing_class"], offset)
            super().__init__(engine=engine, **options)

    return SampledElsewhere


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_a_step_on_an_engine_that_computes_the_same_is_the_step_without(folder, beta):
    plain = Trained(folder, share_prompts(GRPOTrainer), beta=beta)
    ours = Trained(folder, sampling_elsewhere(), beta=beta)
    (count, number, sampling) = ours.trainer.engine.asked[0]
    assert_not_idle(plain)
    assert_equal(plain, ours)
    assert (count, number, sampling.temperature, sampling.max_new_tokens) == (2, 4, TEMPERATURE, 8)
    assert ours.trainer.sampler_gap < LOGP
    assert plain.trainer.sampler_gap is None


@pytest.mark.parametrize("offset", [-0.3, 0.05])
def test_the_gap_is_the_one_that_trl_logs(deepstack, offset):
    ours = Trained(deepstack, sampling_elsewhere(offset))
    assert ours.trainer.sampler_gap == pytest.approx(abs(offset), abs=LOGP)
    assert ours.logs[0]["sampling/sampling_logp_difference/mean"] == pytest.approx(ours.trainer.sampler_gap)


@pytest.mark.parametrize("offset", [-0.3, -0.15, 0.05])
def test_completions_weigh_what_trl_says_where_the_base_leaves_it_to_us(deepstack, offset):
    trainer = Trained(deepstack, sampling_elsewhere(offset)).trainer
    batch = trainer._generate_and_score_completions([ask.row() for ask in ASKS for _ in range(4)])
    weights = batch.pop("importance_sampling_ratio")
    trainer._correct_for_sampler(batch)
    torch.testing.assert_close(batch["importance_sampling_ratio"], weights)
    assert len(weights.unique()) > 1
    assert (weights == 0).any() == (offset < -0.14)  # 8 tokens x 0.14 nats: three times as likely


def test_completions_that_the_sampler_finds_far_less_likely_teach_nothing(deepstack):
    assert not Trained(deepstack, sampling_elsewhere(-5.0)).change.any()


def test_completions_that_teach_nothing_leave_the_loss_finite(deepstack):
    trainer = Trained(deepstack, sampling_elsewhere(), reward=all_alike).trainer
    batch = trainer._generate_and_score_completions([ask.row() for ask in ASKS for _ in range(4)])
    batch["old_per_token_logps"] -= 200
    assert trainer.compute_loss(trainer.model, batch) == 0


def test_a_correction_that_is_not_ours_is_refused(deepstack):
    with pytest.raises(ValueError, match="a correction for the sampler other than sequence_mask"):
        Trained(deepstack, sampling_elsewhere(), vllm_importance_sampling_mode="token_truncate")
