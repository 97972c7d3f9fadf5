import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_cli.errors import DynamoError
from dynamo_cli.rollout.prompts import INSTRUCTION, frame, prompt_text, template_hash


class Characters:
    """A tokenizer of one token per character, with a start token of its own, like Llama's."""

    def __init__(self, chat_template: str | None = None, start: int = 1) -> None:
        self.chat_template = chat_template
        self.start = start

    def encode(self, text, *, add_special_tokens):
        return [self.start] * add_special_tokens + [ord(character) for character in text]

    def apply_chat_template(self, conversation, *, tokenize, add_generation_prompt):
        assert not tokenize
        turns = "".join(f"<{turn['role']}>{turn['content']}" for turn in conversation)
        return self.chat_template + turns + "<assistant>" * add_generation_prompt


def text_of(tokens: tuple[int, ...]) -> str:
    return "".join(map(chr, tokens))


def test_plain_is_the_question_after_the_tokenizers_own_start():
    assert frame("2+2=", "plain", Characters()) == (1, *map(ord, "2+2="))


def test_qwen_math_is_the_published_chat_text_without_a_second_start():
    expected = (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within "
        "\\boxed{}.<|im_end|>\n<|im_start|>user\nWhat is {question}?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # The braces of a question are text: {question} must survive.
    assert text_of(frame("What is {question}?", "qwen-math", Characters())) == expected


def test_chat_is_the_tokenizers_own_template_around_question_and_instruction():
    tokens = frame("2+2?", "chat", Characters(chat_template="<s>"))
    assert text_of(tokens) == f"<s><user>2+2?\n{INSTRUCTION}<assistant>"


@given(st.text())
def test_every_template_holds_the_question_whole(question):
    tokenizer = Characters(chat_template="<s>")
    for template in ("plain", "qwen-math", "chat"):
        assert question in prompt_text(question, template, tokenizer)


def test_a_tokenizer_without_a_chat_template_is_an_error_that_names_the_others():
    with pytest.raises(DynamoError, match="no chat template.*plain or qwen-math"):
        frame("2+2?", "chat", Characters())


def test_an_unknown_template_is_an_error_that_names_the_known():
    with pytest.raises(DynamoError, match="'qwen'.*plain, qwen-math, chat"):
        frame("2+2?", "qwen", Characters())


def test_the_hash_changes_with_template_chat_text_and_tokens_and_with_nothing_else():
    hashes = {
        template_hash("plain", Characters("<s>")),
        template_hash("qwen-math", Characters("<s>")),
        template_hash("chat", Characters("<s>")),
        template_hash("chat", Characters("<t>")),
        template_hash("plain", Characters("<s>", start=2)),
    }
    assert len(hashes) == 5
    assert template_hash("plain", Characters("<s>")) == template_hash("plain", Characters("<t>"))
