"""The engine behind the server: its greedy answers are the policy's own, whatever is kept, cut off or asked beside them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer

from configs import gridwalker_thinking
from envs_jax import GridWalker
from jaxvlmrl import acting, serve
from jaxvlmrl.building import make_policy
from jaxvlmrl.config import Config
from jaxvlmrl.models.generation import generate, prompt
from jaxvlmrl.models.qwen3_vl import Qwen3VL
from jaxvlmrl.models.smolvlm import SmolVLM
from jaxvlmrl.policy import Policy
from jaxvlmrl.serving.conversations import Dialogue, Kept, Picture, Turn
from jaxvlmrl.serving.errors import RequestError
from jaxvlmrl.serving.programs import Programs
from jaxvlmrl.serving.rows import Event, Job, Sampling
from jaxvlmrl.serving.scheduler import Scheduler
from jaxvlmrl.serving.served import EVERYTHING, Asked, sizes_of
from jaxvlmrl.serving.transcript import Transcript
from jaxvlmrl.serving.wording import Wording
from jaxvlmrl.text.chat import Chat
from jaxvlmrl.text.tokenizer import OWN, Tokenizer
from tests.serving import SHIPPED, Said, ask, noise, shown
from tests.small import fresh, make_config, sharpened


@pytest.fixture(scope="module")
def shipped() -> Scheduler:
    return serve.make_scheduler(serve.load(SHIPPED, Asked()), 1 << 28)


def scheduler_of(policy: Policy, params: dict, kind: str = "own", answer: int = 0, **sizes: int) -> Scheduler:
    found = sizes_of(policy, kind, answer or policy.chat.max_answer_tokens, Asked(rows=3))._replace(**sizes)
    programs = Programs(policy, params, found, policy.model.image_shape)
    return Scheduler(programs, Wording(policy.chat, kind), Kept(1 << 28))


def thinking_config() -> Config:
    config = gridwalker_thinking.get_config("zero")
    return dataclasses.replace(config, conversation=dataclasses.replace(config.conversation, window=2))


CONFIGS = {
    "window 1": lambda: make_config(window=1),
    "window 4, free answers": lambda: make_config(window=4, constrained=False),
    "thoughts": thinking_config,
    "qwen": lambda: dataclasses.replace(make_config(window=3, model=Qwen3VL()), env=GridWalker()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_the_policy_by_itself(name: str):
    """Six turns, from what is kept and from nothing; free answers of a random model are cut by the budget."""
    config = CONFIGS[name]()
    policy, params = make_policy(config), sharpened(fresh(config), 5.0)
    actor, scheduler = acting.Actor(config, policy, params), scheduler_of(policy, params)
    pictures, answers, conversation = noise(6, (config.env.height, config.env.width)), [], actor.start()
    for turn, picture in enumerate(pictures):
        answer, conversation = actor.act(picture, conversation)
        [warm] = ask(scheduler, shown(pictures[: turn + 1], answers))
        assert warm.text == answer.text
        assert sum(token.log_prob for token in warm.tokens) == pytest.approx(answer.log_prob, abs=1e-3)
        assert warm.usage.cached > 0 or turn == 0
        answers.append(answer.text)
    scheduler.kept._blocks.clear()  # as if their bytes had been needed; the sampled ids are still known
    [cold] = ask(scheduler, shown(pictures, answers[:-1]))
    assert cold.usage.cached == 0
    assert cold.text == answers[-1]
    assert [t.id for t in cold.tokens] == [t.id for t in warm.tokens]
    assert set(scheduler.programs.compiled().values()) == {1}


def words(tmp_path: Path) -> Tokenizer:
    """The tiny tokenizer with Qwen's special tokens too."""
    made = HFTokenizer.from_file(str(OWN["tiny"]))
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    made.add_special_tokens([AddedToken(name, special=True) for name in names])
    made.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "template"), [pytest.param(SmolVLM(), "smolvlm", marks=pytest.mark.slow), (Qwen3VL(), "qwen3_vl")]
)
def test_the_clients_words_are_what_plain_generation_reads(model: SmolVLM | Qwen3VL, template: str, tmp_path: Path):
    """Texts and pictures in any order, two pictures in a turn, read in chunks that cut through them, drawn in pieces."""
    tokenizer = words(tmp_path)
    model = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=tokenizer.vocab_size + 3))
    params = sharpened(jax.jit(model.init)(jax.random.key(5)), 5.0)
    chat = Chat(tokenizer, template, "", model.num_image_tokens, 1, 24)
    policy = Policy(model, chat, GridWalker(), EVERYTHING, constrained=False, temperature=1.0)
    scheduler = scheduler_of(policy, params, "client", chunk=7, piece=5, slots=400)
    a, b, c = map(Picture.of, noise(3, model.image_shape))
    turns = [Turn((a, "what is here, and here?", b), "gold {prompt} ahead"), Turn(("and now?", c))]
    [answer] = ask(scheduler, Dialogue("be brief {x}", tuple(turns)))
    picture = chat.template.image.format(tokens=chat.template.image_token * model.num_image_tokens)
    written = {
        "smolvlm": "<|im_start|>System: be brief {x}<end_of_utterance>\nUser: @what is here, and here?@<end_of_utterance>\n"
        "Assistant: gold {prompt} ahead<end_of_utterance>\nUser: and now?@<end_of_utterance>\nAssistant:",
        "qwen3_vl": "<|im_start|>system\nbe brief {x}<|im_end|>\n<|im_start|>user\n@what is here, and here?@<|im_end|>\n"
        "<|im_start|>assistant\ngold {prompt} ahead<|im_end|>\n<|im_start|>user\nand now?@<|im_end|>\n"
        "<|im_start|>assistant\n",
    }[template].replace("@", picture)  # fmt: skip
    ids = jnp.asarray([tokenizer.encode(written)], jnp.int32)
    looked = model.image_tokens(params, jnp.asarray(np.stack([p.pixels for p in (a, b, c)])))[None]
    allowed = policy.grammar.allowed[0]

    def choose(logits: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.argmax(jnp.where(jnp.asarray(allowed), logits[:, : len(allowed)], -jnp.inf), axis=-1)

    embedded = prompt(model, params, ids, looked, chat.image_id)
    expected = np.asarray(generate(model, params, *embedded, 24, chat.end_id, choose))[0].tolist()
    found = [token.id for token in answer.tokens]
    assert found == expected[: len(found)]
    assert len(found) == 24 or found[-1] == chat.end_id
    assert answer.usage.prompt == ids.shape[1]
    again = Dialogue("be brief {x}", (*turns[:-1], Turn(turns[-1].content, answer.text), Turn(("go on",))))
    [warm] = ask(scheduler, again)
    scheduler.kept._blocks.clear()
    [cold] = ask(scheduler, again)
    assert warm.usage.cached > ids.shape[1]
    assert cold.usage.cached == 0
    assert [t.id for t in warm.tokens] == [t.id for t in cold.tokens]
    [short] = ask(scheduler, Dialogue(None, (Turn(("hello",)),)))
    bare = chat.template.no_system + chat.template.message.format(content="hello")
    assert short.usage.prompt == len(tokenizer.encode(bare))
    with pytest.raises(RequestError, match="room for 400"):
        ask(scheduler, Dialogue(None, (Turn(("hello " * 100,)),)))
    with pytest.raises(RequestError, match="special token <image>"):
        ask(scheduler, Dialogue(None, (Turn(("<image>",)),)))


# Sampling


def test_sampling_follows_its_seed_and_its_nucleus(shipped: Scheduler):
    dialogues = [shown(noise(1, (32, 32), seed), []) for seed in range(12)]
    texts = lambda **sampling: [said.text for said in ask(shipped, *dialogues, **sampling)]
    greedy = texts()
    assert texts(temperature=1.0, seed=1) == texts(temperature=1.0, seed=1)
    assert texts(temperature=2.0, seed=1) != texts(temperature=2.0, seed=2)
    assert texts(temperature=2.0, top_p=1e-6, seed=3) == greedy
    assert shown(noise(1, (32, 32)), []).seed(3) == shown(noise(1, (32, 32)), []).seed(3)
    assert len({one.seed(seed) for one in dialogues for seed in (0, 1)}) == 24, "each has noise of its own"
    alone = [ask(shipped, one, temperature=1.5, seed=7)[0].text for one in dialogues]
    assert alone == texts(temperature=1.5, seed=7), "a row's neighbours do not matter"


def test_log_probs_are_of_temperature_one(shipped: Scheduler):
    dialogue = shown(noise(1, (32, 32)), [])
    [cold] = ask(shipped, dialogue, likeliest=5)
    [hot] = ask(shipped, dialogue, likeliest=5, temperature=2.0, top_p=0.999, seed=0)
    assert cold.tokens[0].likeliest == hot.tokens[0].likeliest, "before temperature and top-p"
    assert cold.tokens[0].likeliest[0] == (cold.tokens[0].id, cold.tokens[0].log_prob)
    ordered = [log_prob for _, log_prob in cold.tokens[0].likeliest]
    assert ordered == sorted(ordered, reverse=True)
    assert sum(np.exp(ordered)) <= 1 + 1e-5


def test_samples_have_the_policys_frequencies(shipped: Scheduler):
    """400 second tokens at temperature 1 against their probabilities."""
    dialogue, drawn = shown(noise(1, (32, 32), 5), []), [Said() for _ in range(400)]
    asked = [Sampling(temperature=1.0, seed=seed, max_tokens=2, likeliest=20) for seed in range(400)]
    shipped.submit([Job(dialogue, sampling, said.hear) for sampling, said in zip(asked, drawn)])
    shipped.drain()
    second = [said.tokens[1] for said in drawn if len(said.tokens) > 1]
    probability = np.exp(second[0].likeliest[0][1])
    share = np.mean([token.id == second[0].likeliest[0][0] for token in second])
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / 400) + 0.01


def test_an_answer_that_is_cut_goes_on_as_training_does(shipped: Scheduler):
    """A cut answer has no end token; the next observation writes it. Its text alone, not known as cut, reads the same."""
    pictures = noise(2, (32, 32), 3)
    [cut] = ask(shipped, shown(pictures[:1], []), max_tokens=2)
    assert (cut.reason, len(cut.tokens)) == ("length", 2)
    [warm] = ask(shipped, shown(pictures, [cut.text]))
    shipped.kept = Kept(1 << 28)
    [cold] = ask(shipped, shown(pictures, [cut.text]))
    assert warm.usage.prompt == cold.usage.prompt
    assert warm.usage.cached > cold.usage.cached == 0
    np.testing.assert_allclose([t.log_prob for t in warm.tokens], [t.log_prob for t in cold.tokens], atol=1e-5)


def test_stop_texts_end_an_answer(shipped: Scheduler):
    dialogue = shown(noise(1, (32, 32)), [])
    [whole] = ask(shipped, dialogue)
    [stopped] = ask(shipped, dialogue, stop=(whole.text[3:5],))
    assert stopped.text == whole.text[: whole.text.find(whole.text[3:5])]
    assert stopped.reason == "stop"
    [again] = ask(shipped, shown(noise(2, (32, 32)), [stopped.text]))
    assert again.usage.cached == 8, "the start alone: what was drawn is not what was said"


def test_text_is_given_out_when_it_is_certain():
    tokenizer = Tokenizer()
    transcript = Transcript(tokenizer, end_id=-1, stop=("rd 3",))
    pieces = []
    for token in tokenizer.encode("é`forward 2` forward 3`"):
        transcript.add(token)
        pieces.append(transcript.take(is_last=False))
        if transcript.is_ended:
            break
    assert "".join(pieces) == "é`forward 2` forwa"
    assert all("�" not in piece for piece in pieces)
    assert transcript.met_stop


# What is kept


def test_bytes_are_limited_and_answers_stay_the_same(shipped: Scheduler):
    pictures = noise(5, (32, 32), 9)
    answers: list[str] = []
    for turn in range(5):
        answers.append(ask(shipped, shown(pictures[: turn + 1], answers))[0].text)
    try:
        shipped.kept = Kept(3 * 12 * shipped.programs.bytes_per_token)
        for turn in range(5):
            [said] = ask(shipped, shown(pictures[: turn + 1], answers[:turn]))
            assert said.text == answers[turn]
            assert shipped.kept.bytes <= shipped.kept.limit_bytes
    finally:
        shipped.kept = Kept(1 << 28)


def test_the_least_recently_used_goes_first():
    from jaxvlmrl.serving.conversations import Block

    block = Block(np.zeros(100, np.uint8), 0, False)
    kept = Kept(300)
    for name in (b"a", b"b", b"c"):
        kept.put([name], {name: block})
    assert kept.longest([b"a"], 3)
    kept.put([b"d"], {b"d": block})
    assert [kept.longest([name], 3) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert kept.longest([b"a", b"x", b"c", b"d"], 2).turns == 3, "a window of two needs the last block alone"
    assert kept.longest([b"a", b"x", b"c", b"d"], 9).turns == 0


def test_a_conversations_start_goes_last():
    """Without it the rest is of no use."""
    from jaxvlmrl.serving.conversations import Block

    block, kept = Block(np.zeros(100, np.uint8), 0, False), Kept(400)
    kept.put([b"start", b"1"], {b"start": block, b"1": block})
    kept.put([b"start", b"1", b"2"], {b"2": block})
    kept.put([b"other", b"x"], {b"other": block, b"x": block})
    assert kept.longest([b"start", b"1", b"2"], 9).turns == 1, "its last turn made room"
    kept.put([b"y"], {b"y": block})
    assert kept.longest([b"other", b"x"], 9).turns == 0
    assert kept.longest([b"start", b"1"], 1).turns == 1, "just used"
    assert kept.bytes == 400


def test_one_text_of_two_token_sequences_is_no_mixture(shipped: Scheduler):
    """Somebody else gets with its end token what was cut before it here, and the third turn is what it would have been."""
    pictures = noise(3, (32, 32), 3)
    first = lambda **sampling: ask(shipped, shown(pictures[:1], []), **sampling)[0]
    cut_at = len(first().tokens) - 1

    def third(is_disturbed: bool) -> Said:
        shipped.kept = Kept(1 << 28)
        cut = first(max_tokens=cut_at)
        [second] = ask(shipped, shown(pictures[:2], [cut.text]))
        if is_disturbed:
            assert first().text == cut.text
        return ask(shipped, shown(pictures, [cut.text, second.text]))[0]

    alone, disturbed = third(False), third(True)
    assert alone.usage == disturbed.usage
    assert alone.tokens == disturbed.tokens


def test_what_cannot_be_kept_is_answered(shipped: Scheduler, monkeypatch: pytest.MonkeyPatch):
    dialogue = shown(noise(1, (32, 32), 40), [])

    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(shipped.programs, "fetch", fail)
    [said] = ask(shipped, dialogue)
    assert said.reason == "stop"
    assert shipped._rows == [None] * len(shipped._rows)


def test_choices_of_one_request_are_laid_out_once(shipped: Scheduler, monkeypatch: pytest.MonkeyPatch):
    from jaxvlmrl.serving import scheduler as module

    planned = []
    plan_of = module.plan_of
    monkeypatch.setattr(module, "plan_of", lambda job, *more: planned.append(job) or plan_of(job, *more))
    dialogue, drawn = shown(noise(1, (32, 32), 41), []), [Said() for _ in range(3)]
    jobs = [Job(dialogue, Sampling(temperature=0.0, max_tokens=n), said.hear) for n, said in enumerate(drawn, start=1)]
    shipped.submit(jobs)
    shipped.drain()
    assert len(planned) == 1
    assert [len(said.tokens) for said in drawn] == [1, 2, 3]


def test_a_cancelled_job_frees_its_row(shipped: Scheduler):
    events: list[Event] = []
    sampling = Sampling(temperature=0.0, max_tokens=6)
    jobs = [Job(shown(noise(1, (32, 32)), []), sampling, events.append) for _ in range(40)]
    shipped.submit(jobs)
    shipped.step()
    for job in jobs[:39]:
        job.is_cancelled = True
    shipped.step()
    assert sum(row is not None for row in shipped._rows) == 1, "all places but the last one's are free, at once"
    shipped.drain()
    assert [event.reason for event in events if event.is_last] == ["stop"]


def test_a_failed_step_is_answered_and_the_next_one_works(shipped: Scheduler, monkeypatch: pytest.MonkeyPatch):
    import threading

    dialogue = shown(noise(1, (32, 32)), [])
    [expected] = ask(shipped, dialogue)
    events: list[Event] = []
    done = threading.Event()

    def emit(event: Event) -> None:
        events.append(event)
        if event.is_last:
            done.set()

    scheduler = Scheduler(shipped.programs, shipped.wording, Kept(1 << 20))
    draw = scheduler.programs.draw

    def fail_once(*arguments):
        monkeypatch.setattr(scheduler.programs, "draw", draw)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scheduler.programs, "draw", fail_once)
    thread = threading.Thread(target=scheduler.run, daemon=True)
    thread.start()
    for _ in range(2):
        done.clear()
        scheduler.submit([Job(dialogue, Sampling(temperature=0.0, max_tokens=6), emit)])
        assert done.wait(30)
    scheduler.stop()
    thread.join(30)
    assert events[0].error is not None
    assert events[0].error.status == 500
    assert events[-1].text == expected.text


def test_an_engine_that_cannot_start_anew_takes_no_more(shipped: Scheduler, monkeypatch: pytest.MonkeyPatch):
    scheduler = Scheduler(shipped.programs, shipped.wording, Kept(1 << 20))
    events: list[Event] = []

    def fail(*arguments):
        raise RuntimeError("out of memory")

    def fail_too():
        assert not hasattr(scheduler, "_state"), "two states at once"
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scheduler.programs, "read", fail)
    monkeypatch.setattr(scheduler.programs, "empty", fail_too)
    dialogue = shown(noise(1, (32, 32)), [])
    jobs = [Job(dialogue, Sampling(), events.append) for _ in range(20)]
    scheduler.submit(jobs)
    scheduler.run()
    assert [event.error.status for event in events if event.error] == [500] * 16 + [503] * 4
    assert scheduler.is_stopping
    with pytest.raises(RequestError, match="has stopped"):
        scheduler.submit(jobs)
