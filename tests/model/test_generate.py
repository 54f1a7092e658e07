"""Own greedy generation against transformers' `generate`, and batches against single rows."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from ans.model import cache, generate
from ans.model.family import Inputs, Vlm
from ans.model.generate import AT_ONCE, Chance, Pace, Prefix, forced, greedy, pad_left, prefill

END, SEG = 5, 7


class Text(Vlm):
    """A language model that sees no image."""

    vision = dtype = None

    def __init__(self, language_model: Qwen2ForCausalLM) -> None:
        super().__init__()
        self.language_model = language_model

    def encode(self, values, grids):
        raise NotImplementedError

    def project(self, tokens):
        raise NotImplementedError

    def read(self, beginnings: list[Tensor]) -> Prefix:
        ids, mask = pad_left([row.tolist() for row in beginnings])
        return prefill(self, self.inputs(ids, mask, self.positions(ids, mask, [])))

    def rows(self, prefix: Prefix, rows: list[Tensor]) -> Inputs:
        ids, mask = pad_left([row.tolist() for row in rows])
        return self.inputs(ids, torch.cat([prefix.mask, mask], 1), prefix.positions(mask))

    def inputs(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Inputs:
        embeds = self.language_model.get_input_embeddings()(ids)
        return Inputs(embeds, mask, positions, torch.zeros_like(ids, dtype=torch.bool))

    def continued(self, shared: Prefix, owner: list[int], rows: list[Tensor], ended, limit: int):
        prefix = shared.rows(torch.tensor(owner))
        return greedy(self, prefix, self.rows(prefix, rows), ended, SEG, limit, confidence=True)


def model() -> Text:
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    return Text(Qwen2ForCausalLM(config).eval())


def prompts(seed: int, lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, 40, (length,), generator=generator) for length in lengths]


def test_rows_are_padded_on_the_left() -> None:
    ids, mask = pad_left([[11], [12, 13]])
    assert ids.tolist() == [[0, 11], [12, 13]] and mask.tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize("tokens", [0, 1])
def test_confidence_of_the_shortest_answers(tokens: int) -> None:
    """Of one token it is that token's probability, of none it is 1."""
    vlm = model()
    ids = prompts(0, [5])[0]
    (answer,) = vlm.continued(vlm.read([ids[:3]]), [0], [ids[3:]], lambda ids: False, tokens)
    with torch.no_grad():
        likeliest = float(vlm.language_model(ids[None]).logits[0, -1].softmax(-1).max())
    assert len(answer.ids) == tokens and answer.seg_states.shape == (0, 32)
    assert answer.confidence == pytest.approx(likeliest if tokens else 1, rel=1e-5)


LATE = [Pace(3, False, True), Pace(5, True, True)]


@pytest.fixture(
    params=[AT_ONCE, Pace(3, False), Pace(5, True), *LATE], ids=["at once", "every third", "fixed", "third, late", "fixed, late"]
)
def pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pace:
    """Decoding as on the CPU, and by what differs on a GPU: the host looks at the tokens later, and each step is the same work."""
    monkeypatch.setitem(generate.PACES, "cpu", request.param)
    return request.param


@pytest.mark.usefixtures("pace")
def test_equals_transformers_with_a_shared_prefix() -> None:
    vlm = model()
    llm = vlm.language_model
    beginnings, endings, owner = prompts(0, [9, 4]), prompts(1, [3, 6, 1, 2]), [0, 1, 1, 0]
    answers = vlm.continued(vlm.read(beginnings), owner, endings, lambda ids: ids[-1] == END, 12)
    for answer, ending, beginning in zip(answers, endings, owner, strict=True):
        whole = torch.cat([beginnings[beginning], ending])[None]
        expected = llm.generate(
            whole, attention_mask=torch.ones_like(whole), max_new_tokens=12, do_sample=False, eos_token_id=END, pad_token_id=0
        )
        ids = expected[0, whole.shape[1] :]
        assert answer.ids == ids.tolist()
        with torch.no_grad():
            said = llm(expected).logits[0, whole.shape[1] - 1 : -1].log_softmax(-1).gather(1, ids[:, None])
        assert answer.confidence == pytest.approx(float(said.mean().exp()), rel=1e-5)


@pytest.mark.usefixtures("pace")
def test_seg_states_are_those_of_a_full_forward() -> None:
    vlm = model()
    llm = vlm.language_model
    # A head that prefers [SEG] every so often: its row is the mean of the others plus a push.
    with torch.no_grad():
        llm.lm_head.weight[SEG] = llm.lm_head.weight.mean(0) + 0.05 * torch.randn(32, generator=torch.Generator().manual_seed(1))
        llm.lm_head.weight[SEG] *= 6
    rows = prompts(5, [4, 7, 2])
    answers = vlm.continued(vlm.read([row[:1] for row in rows]), [0, 1, 2], [row[1:] for row in rows], lambda ids: False, 10)
    said = 0
    for row, answer in zip(rows, answers, strict=True):
        whole = torch.cat([row, torch.tensor(answer.ids)])
        with torch.no_grad():
            hidden = llm.model(whole[None]).last_hidden_state[0]
        positions = [len(row) + i for i, token in enumerate(answer.ids[:-1]) if token == SEG]
        torch.testing.assert_close(answer.seg_states, hidden[positions], atol=1e-5, rtol=0)
        said += len(positions)
    assert said > 0


def test_a_prefix_serves_again_and_ended_rows_leave(pace: Pace) -> None:
    """Rows that end at different steps, so that the batch shrinks: each row's answer is the one it gives alone."""
    vlm = model()
    beginnings, endings, owner = prompts(0, [9, 4]), prompts(1, [3, 6, 1, 2, 5, 4]), [0, 1, 1, 0, 0, 1]
    lengths = {0: 12, 1: 2, 2: 7, 3: 1, 4: 3, 5: 5}
    shared = vlm.read(beginnings)

    def stops(rows: list[int]):
        """`ended` is asked once per running row and step, in the rows' order; here row n ends after `lengths[n]` tokens."""
        asked = [n for step in range(1, 13) for n in rows if lengths[n] >= step]
        turns = iter(asked)
        return lambda ids: lengths[next(turns)] == len(ids)

    sizes = []
    hook = vlm.language_model.model.register_forward_hook(
        lambda module, args, kwargs, out: sizes.append(len(out[0])), with_kwargs=True
    )
    together = vlm.continued(shared, owner, endings, stops(list(range(6))), 12)
    hook.remove()
    assert [len(answer.ids) for answer in together] == list(lengths.values())
    expected = {1: [6, 6, 6, 3, 3, 3, 3, 1, 1, 1, 1, 1], 3: [6, 6, 6, 3, 3, 3, 3, 3, 3, 1, 1, 1], 5: [6] * 5 + [2] * 5 + [1] * 2}
    if pace in LATE:  # a block later
        expected = {3: [6] * 6 + [3] * 6, 5: [6] * 10 + [2] * 2}
    assert sizes == expected[pace.steps], "ended rows leave once they are half of the batch, when the host looks"
    for n, answer in enumerate(together):
        alone = vlm.continued(shared, [owner[n]], [endings[n]], stops([n]), 12)
        assert alone[0].ids == answer.ids


def test_forced_states_are_those_of_a_full_forward() -> None:
    vlm = model()
    beginnings, endings, owner, answer = prompts(0, [9, 4]), prompts(1, [3, 6, 1]), [0, 1, 0], prompts(2, [4])[0]
    shared = vlm.read(beginnings)
    for _ in range(2):  # the prefix is as good the second time
        prefix = shared.rows(torch.tensor(owner))
        states = forced(vlm, prefix, vlm.rows(prefix, [torch.cat([row, answer]) for row in endings]), len(answer))
        for state, ending, beginning in zip(states, endings, owner, strict=True):
            with torch.no_grad():
                whole = vlm.language_model.model(torch.cat([beginnings[beginning], ending, answer])[None]).last_hidden_state[0]
            torch.testing.assert_close(state, whole[-len(answer) :], atol=1e-5, rtol=0)


@pytest.mark.usefixtures("pace")
def test_rows_that_say_the_same() -> None:
    """Three prompts for one answer, twice, beside one row at a time and the mean of the log-probabilities by hand."""
    text, limit = model(), 6
    beginnings = prompts(1, [4, 4, 5, 3, 6, 4])
    shared = text.read(beginnings)
    prefix = shared.rows(torch.arange(6))
    rows = text.rows(prefix, prompts(2, [3, 2, 3, 3, 1, 2]))
    answers = greedy(text, prefix, rows, lambda ids: ids[-1] == END, SEG, limit, confidence=True, together=3)
    for n in (0, 3):
        ids: list[int] = []
        scores: list[Tensor] = []
        while len(ids) < limit and (not ids or ids[-1] != END):
            each = []
            for begin, row in zip(beginnings[n : n + 3], prompts(2, [3, 2, 3, 3, 1, 2])[n : n + 3], strict=True):
                whole = torch.cat([begin, row, torch.tensor(ids, dtype=torch.long)])[None]
                each.append(text.language_model(whole).logits[0, -1].log_softmax(-1))
            mean = torch.stack(each).detach().mean(0)
            ids.append(int(mean.argmax()))
            scores.append(torch.stack([row[ids[-1]].detach() for row in each]))
        assert [answer.ids for answer in answers[n : n + 3]] == [ids] * 3
        expected = torch.stack(scores).mean(0).exp()
        assert torch.tensor([answer.confidence for answer in answers[n : n + 3]]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fixed", [False, True])
def test_more_tokens_than_there_is_room_for(fixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache moves, and nothing that it holds changes: transformers' own says the same."""
    monkeypatch.setitem(generate.PACES, "cpu", Pace(4, fixed))
    monkeypatch.setattr(cache, "ROOM", 8)
    vlm, rows, limit = model(), prompts(5, [4, 7]), 25
    prefix = vlm.read([row[:1] for row in rows]).rows(torch.arange(2), 3)
    answers = greedy(vlm, prefix, vlm.rows(prefix, [row[1:] for row in rows]), lambda ids: False, SEG, limit)
    assert 7 + limit - 1 <= prefix.cache.reach <= 7 + limit + 8
    for row, answer in zip(rows, answers, strict=True):
        expected = vlm.language_model.generate(
            row[None], max_new_tokens=limit, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert answer.ids == expected[0, len(row) :].tolist()


def test_fixed_steps_are_the_same_work_on_the_same_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph needs: from step to step no tensor that a step reads lies elsewhere or has another size."""
    monkeypatch.setitem(generate.PACES, "cpu", Pace(4, True))
    seen = []
    read = generate.Decoding.read

    def watched(decoding: generate.Decoding, inputs: Inputs) -> generate.Said:
        if inputs.embeds.shape[1] == 1:
            tensors = (inputs.embeds, inputs.mask, inputs.positions, *(layer.keys for layer in decoding.cache.layers))
            seen.append([(tensor.data_ptr(), tensor.shape) for tensor in tensors])
        return read(decoding, inputs)

    monkeypatch.setattr(generate.Decoding, "read", watched)
    vlm, rows = model(), prompts(5, [4, 7])
    vlm.continued(vlm.read([row[:1] for row in rows]), [0, 1], [row[1:] for row in rows], lambda ids: False, 20)
    assert len(seen) == 19 and all(step == seen[0] for step in seen)


def test_no_graph_where_the_host_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generate.PACES, "cpu", Pace(4, True))
    monkeypatch.setattr(generate, "FixedDecoding", None)
    vlm, rows = model(), prompts(5, [4])
    vlm.repeatable = False
    assert len(vlm.continued(vlm.read([rows[0][:1]]), [0], [rows[0][1:]], lambda ids: False, 5)[0].ids) == 5


def test_random_tokens_come_as_often_as_they_are_probable() -> None:
    """Of those that may be said, among the most probable ones; and rows that have ended take nothing from the others."""
    text, rows, among = model(), 4000, torch.tensor([3, END, 9, 11, 20, 39])
    begin, row = prompts(1, [4])[0], prompts(2, [3])[0]
    uniform = torch.rand(rows, 3, 4, generator=torch.Generator().manual_seed(0))
    noise = -(-uniform.log()).log()

    def scores(said: list[int]) -> Tensor:
        with torch.no_grad():
            return text.language_model(torch.cat([begin, row, torch.tensor(said, dtype=torch.long)])[None]).logits[0, -1, among]

    def draw(noise: Tensor) -> list[list[int]]:
        prefix = text.read([begin]).rows(torch.zeros(len(noise), dtype=torch.long))
        chance = Chance(among, noise)
        found = greedy(
            text, prefix, text.rows(prefix, [row] * len(noise)), lambda ids: ids[-1] == END, SEG, noise.shape[1], chance=chance
        )
        return [one.ids for one in found]

    first = scores([])
    best, index = first.topk(4)
    counts = torch.bincount(torch.tensor([ids[0] for ids in draw(noise[:, :1])]), minlength=40)
    assert counts[among[index]] / rows == pytest.approx(best.softmax(-1), abs=0.03) and counts[among[index]].sum() == rows
    few = noise[:12]
    for ids, own in zip(draw(few), few, strict=True):
        for step, token in enumerate(ids):
            values, index = scores(ids[:step]).topk(4)
            assert token == among[index[(values + own[step]).argmax()]]
        assert len(ids) == 3 or ids[-1] == END
