"""The rollout against the library's `generate`: the same tokens, and at every step the logits of a full forward."""

import pytest
import torch
from live_bytes import LiveBytes
from shared_prompt_cases import FAMILIES, ONE, TEXT, TWO, WIDE, Pair, distance, load_model, model_folder

from grit_lite import rollout
from grit_lite.rollout import Draw, Sampling, cut_at_end, decode, prefill, sample
from grit_lite.vlm import VisionLanguageModel

ASKS = (WIDE, TWO, TEXT, ONE)  # of four different lengths
OWNERS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
ENDS = tuple(range(100, 220))  # so many that a row of a random model soon meets one
LOGIT = 1e-4
WAYS = {
    "greedy": {},
    "sampled": {"temperature": 0.9},
    "hot": {"temperature": 1.7},
    "top k": {"temperature": 0.9, "top_k": 3},
    "top p": {"temperature": 0.9, "top_p": 0.6},
    "top k and p": {"temperature": 1.3, "top_k": 8, "top_p": 0.7},
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    return Pair(model_folder(tmp_path_factory, request.param))


@pytest.fixture(scope="module")
def prompts(pair):
    return pair.prompts(ASKS)


def sampling(pair, tokens=24, suppressed=(), **options):
    """Never with the token that `generate` pads ended rows with, so that it marks where they ended."""
    tokenizer = pair.processor.tokenizer
    return Sampling(tokens, suppressed=(tokenizer.pad_token_id, *suppressed), tokenizer=tokenizer, **options)


def generated(pair, how, owners=OWNERS, seed=3):
    """What the library's `generate` makes of padded rows."""
    batch = pair.batch([ASKS[owner] for owner in owners])
    torch.manual_seed(seed)
    tokens = pair.stock.model.generate(**batch, **how.for_generate())[:, batch["input_ids"].shape[1] :]
    padding = pair.processor.tokenizer.pad_token_id
    return [[token for token in row if token != padding] for row in tokens.tolist()]


def ours(pair, prompts, how, owners=OWNERS, seed=3):
    torch.manual_seed(seed)
    return sample(pair.vlm, prompts, owners, how)


@pytest.mark.parametrize("ends", [(), ENDS], ids=["full length", "early ends"])
@pytest.mark.parametrize("way", WAYS)
def test_the_tokens_are_those_of_generate(pair, prompts, way, ends):
    how = sampling(pair, end_tokens=ends, **WAYS[way])
    expected = generated(pair, how)
    assert ours(pair, prompts, how) == expected
    assert len({len(row) for row in expected}) > 1 or not ends


def test_the_ways_of_sampling_differ(pair, prompts):
    rows = {str(ours(pair, prompts, sampling(pair, **way))) for way in WAYS.values()}
    assert len(rows) == len(WAYS)


@pytest.mark.parametrize("owners", [[3, 0, 2, 0, 1], [2, 0], [1]], ids=str)
def test_rows_stand_in_any_order_and_not_every_prompt_has_one(pair, prompts, owners):
    how = sampling(pair, end_tokens=ENDS, temperature=0.9)
    assert ours(pair, prompts, how, owners) == generated(pair, how, owners)


def test_the_rows_of_another_prompt_are_noticed(pair, prompts):
    how = sampling(pair)
    assert ours(pair, prompts, how, [0, 1]) != ours(pair, prompts, how, [1, 0])


@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_one_token_is_enough(pair, prompts, way):
    how = sampling(pair, tokens=1, **WAYS[way])
    expected = generated(pair, how)
    assert ours(pair, prompts, how) == expected
    assert {len(row) for row in expected} == {1}


def test_a_row_that_ends_leaves_the_others_as_they_were(pair, prompts):
    endless = ours(pair, prompts, sampling(pair, temperature=0.9))
    ending = ours(pair, prompts, sampling(pair, temperature=0.9, end_tokens=ENDS))
    assert ending == cut_at_end(torch.tensor(endless), ENDS)
    assert len({len(row) for row in ending}) > 2


@pytest.mark.parametrize("at_once", [1, 3, 5, 100])
@pytest.mark.parametrize("way", ["greedy", "sampled", "top k"])
def test_a_divided_rollout_draws_the_same_tokens(pair, prompts, way, at_once):
    how = sampling(pair, end_tokens=ENDS, stop_strings=("e",), **WAYS[way])
    torch.manual_seed(3)
    assert sample(pair.vlm, prompts, OWNERS, how, at_once) == ours(pair, prompts, how)


def test_a_divided_rollout_needs_less_memory(pair, prompts):
    def peak(at_once):
        with LiveBytes() as counted:
            sample(pair.vlm, prompts, OWNERS, sampling(pair), at_once)
        return counted.peak

    assert peak(4) < 0.7 * peak(None)


def test_what_follows_an_end_token_is_cut():
    rows = torch.tensor([[5, 1, 7, 2], [1, 5, 5, 5], [5, 6, 7, 8], [5, 6, 7, 2]])
    assert cut_at_end(rows, [1, 2]) == [[5, 1], [1], [5, 6, 7, 8], [5, 6, 7, 2]]


@pytest.mark.parametrize("way", ["greedy", "sampled", "top k"])
def test_suppressed_tokens_are_never_drawn(pair, prompts, way):
    allowed = set(range(300, 306))
    suppressed = [token for token in range(pair.vlm.head.out_features) if token not in allowed]
    how = sampling(pair, suppressed=suppressed, **WAYS[way])
    rows = ours(pair, prompts, how)
    assert {token for row in rows for token in row} <= allowed
    assert rows == generated(pair, how)


# Stop strings


def plain_text(pair):
    """The tokens that are not plain words, so that without them every completion is text that can be searched."""
    texts = enumerate(pair.processor.tokenizer.batch_decode([[token] for token in range(pair.vlm.head.out_features)]))
    return [token for token, text in texts if not text.strip().isalpha() or not text.isascii()]


@pytest.mark.parametrize("ends", [(), ENDS], ids=["alone", "beside end tokens"])
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_a_stop_string_ends_a_row_where_the_library_would(pair, prompts, way, ends):
    words = plain_text(pair)
    endless = ours(pair, prompts, sampling(pair, suppressed=words, **WAYS[way]))
    texts = pair.processor.tokenizer.batch_decode([row[6:9] for row in (endless[1], endless[8])])
    # from the middle of a token to the middle of one after it, and one that stands in a single token
    stops = (texts[0][1:-1], texts[1][-3:])
    how = sampling(pair, suppressed=words, stop_strings=stops, end_tokens=ends, **WAYS[way])
    expected = generated(pair, how)
    assert ours(pair, prompts, how) == expected
    assert len(expected[1]) <= 9 < max(len(row) for row in expected)
    assert any(stops[0] in text for text in pair.processor.tokenizer.batch_decode(expected)) or ends


# What the model sees at each step


class Kept(Draw):
    """Keeps the logits of every step."""

    steps: list  # of (rows, logits)

    def __call__(self, logits, rows):
        self.steps.append((rows, logits))
        return super().__call__(logits.clone(), rows)


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.setattr(Kept, "steps", [], raising=False)
    monkeypatch.setattr(rollout, "Draw", Kept)
    return Kept.steps


def forced(pair, ask, completion):
    """(C, V) logits that predict the completion, from one forward pass of the library over all of it."""
    batch = dict(pair.batch([ask]))
    words = torch.tensor([completion])
    length = batch["input_ids"].shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], words], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if "mm_token_type_ids" in batch:
        batch["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(words)], dim=1)
    return pair.stock.model(**batch).logits[0, length - 1 : -1]


@torch.no_grad()
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_the_logits_of_every_step_are_those_of_a_full_forward(pair, prompts, way, steps):
    rows = ours(pair, prompts, sampling(pair, end_tokens=ENDS, **WAYS[way]))
    for row, completion in enumerate(rows):
        seen = torch.stack([logits[living.index(row)] for living, logits in steps if row in living])
        assert distance(seen, forced(pair, ASKS[OWNERS[row]], completion)) <= LOGIT


@torch.no_grad()
def test_the_logits_of_another_prompt_are_far(pair, prompts, steps):
    (completion,) = ours(pair, prompts, sampling(pair), [0])
    seen = torch.cat([logits for _, logits in steps])
    assert distance(seen, forced(pair, ASKS[1], completion)) > 1000 * LOGIT


def test_a_row_that_has_ended_is_computed_no_more(pair, prompts, monkeypatch):
    widths, forward = [], pair.vlm.forward

    def counted(embeddings, positions, layout, **deepstack):
        widths.append(len(embeddings))
        return forward(embeddings, positions, layout, **deepstack)

    monkeypatch.setattr(pair.vlm, "forward", counted)
    rows = ours(pair, prompts, sampling(pair, end_tokens=ENDS, temperature=0.9))
    steps = max(len(row) for row in rows)
    assert widths == [1, *(sum(len(row) > step for row in rows) for step in range(steps))]
    assert widths[1] > widths[-1]


def test_each_step_names_the_rows_that_got_a_token(pair, prompts):
    how = sampling(pair, end_tokens=ENDS, temperature=0.9)
    rows = ours(pair, prompts, how)
    torch.manual_seed(3)
    for step, (living, tokens) in enumerate(decode(pair.vlm, prompts, OWNERS, how)):
        assert living == [row for row in range(len(OWNERS)) if len(rows[row]) > step]
        assert tokens == [rows[row][step] for row in living]


# The prompts


def test_prompts_that_are_run_in_parts_give_the_same(pair, prompts, monkeypatch):
    how = sampling(pair, end_tokens=ENDS, temperature=0.9)
    expected = generated(pair, how)
    lengths = [len(prompt.tokens) for prompt in prompts]
    for limit, parts in ((1, 4), (sum(lengths[:2]), 2), (sum(lengths), 1)):
        calls, run = [], pair.vlm.run
        with monkeypatch.context() as patch:
            patch.setattr(rollout, "PREFILL_TOKENS", limit)
            patch.setattr(pair.vlm, "run", lambda layout, part: (calls.append(len(part)), run(layout, part)))  # noqa: B023
            assert ours(pair, prompts, how) == expected
        assert (len(calls), sum(calls)) == (parts, 4)


@torch.no_grad()
def test_the_keys_and_values_are_those_of_the_librarys_cache(pair, prompts):
    memory = prefill(pair.vlm, prompts)
    for place, ask in enumerate(ASKS):
        cache = pair.stock.model(**pair.batch([ask]), use_cache=True).past_key_values
        assert len(memory) == len(cache.layers)
        for layer, pairs in memory.items():
            keys, values = pairs[place]
            assert distance(keys, cache.layers[layer].keys[:, :, :-1]) <= LOGIT
            assert distance(values, cache.layers[layer].values[:, :, :-1]) <= LOGIT


# Weights that are ruined


@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_ruined_weights_are_reported(tmp_path_factory, way):
    model = load_model(model_folder(tmp_path_factory, FAMILIES[0]))
    model.get_output_embeddings().weight.data[7] = float("nan")
    vlm = VisionLanguageModel(model)
    prompt = vlm.prompts([[300, 301, 302]], [0], {})
    with pytest.raises(FloatingPointError, match="no finite probabilities"):
        sample(vlm, prompt, [0, 0], Sampling(4, **WAYS[way]))


@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_logits_from_which_nothing_can_be_drawn_are_told_from_others(way):
    draw = Draw(Sampling(4, **WAYS[way]), 5, torch.device("cpu"))
    infinity = float("inf")
    ruined = [[0.0, float("nan")], [0.0, infinity], [-infinity, -infinity]]
    tokens, _, finite = draw(torch.tensor([[0.0, -infinity], *ruined, [-infinity, 0.0]]), range(5))
    assert finite.tolist() == [True, False, False, False, True]
    assert tokens[[0, 4]].tolist() == [0, 1]


def attention(query, keys, values):
    """The mixture of a prompt of 1400 keys and 100 keys of a row's own, as `DecodingCache.attend` makes it."""
    own, own_total = rollout._attend(query, keys[:, :, 1400:], values[:, :, 1400:])
    prompt, prompt_total = rollout._attend(query, keys[:, :, :1400], values[:, :, :1400])
    return torch.lerp(own, prompt, torch.sigmoid(prompt_total - own_total)).to(values.dtype)


@pytest.mark.parametrize(("sharpness", "most"), [(1.0, 0.008), (4.0, 0.018)])
def test_sixteen_bit_attention_loses_what_its_products_are_rounded_by_and_no_more(sharpness, most):
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(2, 2, n, 64, generator=generator) for n in (4, 1500, 1500))
    low = [states.bfloat16() for states in (query * sharpness / 8, keys, values)]
    exact = torch.softmax(low[0].double() @ low[1].double().mT, -1) @ low[2].double()
    error = (attention(*low).double() - exact).norm() / exact.norm()
    assert error < most


@pytest.mark.parametrize("autocast", [False, True])
def test_a_sixteen_bit_model_samples(tmp_path_factory, autocast):
    pair = Pair(model_folder(tmp_path_factory, "qwen3_vl"))
    vlm = VisionLanguageModel(pair.stock.model if autocast else pair.stock.model.to(torch.bfloat16))
    prompts = pair.prompts(ASKS)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        rows = sample(vlm, prompts, OWNERS, sampling(pair, 8, temperature=1.0))
    assert [len(row) for row in rows] == [8] * len(OWNERS)
