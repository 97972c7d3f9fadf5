"""Base models of the ladder: a byte-level tokenizer, tiny decoders, and their recipe.

B sequences, T positions. torch, transformers and tokenizers are imported where they are used.
"""

import itertools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from dynamo_cli.ladder import Level, draw_question, split_of, work
from dynamo_cli.models_io import save_model
from dynamo_cli.records import draft, write_text
from dynamo_cli.schema import Section
from dynamo_cli.seeding import derive, generator

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

EOS, PAD = 256, 257  # ids below 256 are the bytes themselves
VOCABULARY = 264  # padded to a multiple of 8
HEAD = 32  # the smallest head size that vLLM's attention kernels take
PATIENCE = 20  # steps whose mean loss says whether a lesson is mastered
CONTEXT = 4096  # bytes; the longest benchmark questions fit


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """One token per byte, whose id is the byte; no text is a special token, nothing is added."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, pad = "<|end|>", "<|pad|>"
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (end, pad)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=pad,
        model_max_length=CONTEXT,
        split_special_tokens=True,  # "<|end|>" inside a question is seven bytes, not the end
        clean_up_tokenization_spaces=False,
        # For Qwen2 folders AutoTokenizer would build Qwen's own tokenizer, whose NFC normalisation
        # changes text. It heeds the files where a folder names a class of its own; no code is run.
        auto_map={"AutoTokenizer": [None, "ladder.ByteTokenizer"]},
    )


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in tokenizer files, with the byte as its id.

    Printable Latin-1 characters stand for themselves, the others for U+0100, U+0101, ...
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = itertools.count(0x100)
    return {chr(byte if byte in printable else next(stand_ins)): byte for byte in range(256)}


def build_model(width: int, *, layers: int, seed: int) -> "Qwen2ForCausalLM":
    """An untrained decoder, float32 on the CPU, with heads of 32 and an MLP of 4 x width.

    Raises ValueError where `width` is no multiple of 32.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if width < HEAD or width % HEAD:
        raise ValueError(f"width {width} must be a positive multiple of {HEAD}")
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        max_position_embeddings=CONTEXT,
        use_sliding_window=False,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        dtype="float32",
    )
    # transformers draws initial weights from torch's global generator; the fork puts it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights", width))
        return Qwen2ForCausalLM(config)


class Lesson(Section):
    """One part of the curriculum: problems of 1 to `operations` operations.

    A result is replaced by a random digit with probability `slip`, and with probability
    `hard_slip` after one of the recipe's hard operations. The lesson ends after `steps`, or sooner:
    once the last 20 losses have a mean below `enough`. Longer problems that come before the short
    ones are mastered are never learnt; how soon that is depends on width and seed.
    """

    operations: Level
    steps: int = Field(ge=1)  # at most
    enough: float = Field(ge=0)  # nats per response token; 0 takes all steps
    rate: float = Field(gt=0)  # share of the model's learning rate
    slip: float = Field(ge=0, le=1)
    hard_slip: float = Field(ge=0, le=1)


class Pretraining(Section):
    """How a base model of the ladder comes to be: AdamW on worked problems, lesson by lesson."""

    batch: int = Field(ge=1)  # problems of one step
    hard: list[Annotated[str, Field(pattern=r"^[+-][0-9]$")]]  # operations that it stays poor at
    lessons: list[Lesson] = Field(min_length=1)
    seed: int


Progress = Callable[[int, int, float], None]  # (steps done, steps in all, loss in nats per token)


def pretrain(
    recipe: Pretraining,
    *,
    width: int,
    layers: int,
    learning_rate: float,
    out: Path,
    progress: Progress | None = None,
) -> None:
    """Train a base model of one size and write its folder, whole or not at all.

    A lesson that ends early counts as all its steps in what `progress` is told.
    """
    import torch
    import transformers

    transformers.logging.disable_progress_bar()  # that of saving would cut into our own
    model = build_model(width, layers=layers, seed=recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    done, total = 0, sum(lesson.steps for lesson in recipe.lessons)
    for number, lesson in enumerate(recipe.lessons):
        rng = generator(recipe.seed, "lesson", number)
        for group in optimizer.param_groups:
            group["lr"] = lesson.rate * learning_rate
        losses: deque[float] = deque(maxlen=PATIENCE)
        for step in range(1, lesson.steps + 1):
            losses.append(practise(model, draw_pairs(rng, lesson, recipe)))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if progress is not None:
                progress(done + step, total, losses[-1])
            if len(losses) == PATIENCE and sum(losses) / PATIENCE < lesson.enough:
                break
        done += lesson.steps
    with draft(out) as scratch:
        save_model(model, build_tokenizer(), scratch)
        write_text(scratch / "README.md", CARD.format(width=width, layers=layers))


def draw_pairs(
    rng: np.random.Generator, lesson: Lesson, recipe: Pretraining
) -> list[tuple[str, str]]:
    """A batch of questions with their responses, careless as the lesson says, shortest first."""

    def write(operation: str, result: int) -> int:
        slip = lesson.hard_slip if operation in recipe.hard else lesson.slip
        return int(rng.integers(10)) if rng.random() < slip else result

    pairs: list[tuple[str, str]] = []
    while len(pairs) < recipe.batch:
        question = draw_question(rng, int(rng.integers(1, lesson.operations + 1)))
        if split_of(question) == "pretrain":
            pairs.append((question, work(question, write)))
    return sorted(pairs, key=lambda pair: len(pair[0]))


def practise(model: "Qwen2ForCausalLM", pairs: list[tuple[str, str]]) -> float:
    """Add the gradient of the mean cross-entropy of all response tokens; returns it, in nats.

    Two passes, the shorter half and the longer half, spend less on padding than one.
    """
    import torch

    tokens = sum(len(response) + 1 for _, response in pairs)
    total = 0.0
    for half in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
        if half:
            ids, wanted = pad_pairs(half)
            # Padding stands on the right, where a causal model cannot see it: no attention mask.
            logits = model(ids, use_cache=False).logits[:, :-1]
            chosen = wanted[:, 1:]
            loss = torch.nn.functional.cross_entropy(
                logits[chosen], ids[:, 1:][chosen], reduction="sum"
            )
            (loss / tokens).backward()
            total += loss.item()
    return total / tokens


def pad_pairs(pairs: list[tuple[str, str]]) -> tuple["Tensor", "Tensor"]:
    """Token ids [B, T], padded on the right, and True where a response token stands [B, T]."""
    import torch

    rows = [[*question.encode(), *response.encode(), EOS] for question, response in pairs]
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    for index, (row, (question, _)) in enumerate(zip(rows, pairs, strict=True)):
        ids[index, : len(row)] = torch.tensor(row)
        wanted[index, len(question) : len(row)] = True
    return ids, wanted


CARD = """---
license: apache-2.0
library_name: transformers
---
A byte-level Qwen2 decoder of width {width} and {layers} layers that has learnt chain arithmetic
modulo 10, carelessly: a base model for quick reinforcement learning on two CPU cores.
Made by `dynamo pretrain` from generated problems alone. Licence: Apache-2.0.
"""
