"""The one place where a question is framed for a model. Training and evaluation both call it."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

from dynamo_cli.errors import DynamoError
from dynamo_cli.provenance import hash_json

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

Template = Literal["plain", "qwen-math", "chat"]

# The special tokens stand in the text: Qwen's tokenizers read them as the tokens they name.
QWEN_MATH = (
    "<|im_start|>system\n{instruction}<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


class Tokenizer(Protocol):
    """What is asked of a transformers tokenizer."""

    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]: ...
    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...


def prompt_text(question: str, template: Template, tokenizer: Tokenizer) -> str:
    """The prompt in words, special tokens included.

    plain: the question and nothing else.
    qwen-math: Qwen2.5-Math's chat text, the instruction as the system's turn.
    chat: the tokenizer's own template, question and instruction as one user's turn.
    Raises DynamoError for an unknown template, or where the tokenizer has no chat template.
    """
    if template == "plain":
        return question
    if template == "qwen-math":
        # Not str.format: a question is full of braces.
        text = QWEN_MATH.replace("{instruction}", INSTRUCTION)
        return text.replace("{question}", question)
    if template == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise DynamoError(
                "template chat: this model's tokenizer has no chat template; "
                "set the model's template to plain or qwen-math"
            )
        turn = {"role": "user", "content": f"{question}\n{INSTRUCTION}"}
        return tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    raise DynamoError(f"unknown template {template!r}; choose from {', '.join(get_args(Template))}")


def frame(question: str, template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids of the prompt. Raises DynamoError as `prompt_text` does."""
    text = prompt_text(question, template, tokenizer)
    # A chat text carries its own special tokens; adding the tokenizer's would double the first.
    return tuple(tokenizer.encode(text, add_special_tokens=template == "plain"))


def template_hash(template: Template, tokenizer: Tokenizer) -> str:
    """Names the framing in manifests: equal hashes frame every question alike.

    Of the text and the tokens of one framed question, so a changed instruction, another chat
    template under the same name, or another tokenizer is another hash.
    """
    question = "What is 7 + 5?"
    text = prompt_text(question, template, tokenizer)
    return hash_json([template, text, frame(question, template, tokenizer)])
