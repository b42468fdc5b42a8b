"""Prompts as tokens: padding, special tokens, chat templates, lengths."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rgpu.errors import InputError
from rgpu.runtime.generation import check_length, encoded

WORDS = {"<pad>": 0, "<begin>": 1, "a": 2, "b": 3, "user": 4, "you": 5}


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """One that begins every text with a token of its own, as Llama's does."""
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    words.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 1)])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<begin>", chat_template=template, padding_side="left"
    )


def test_a_batch_is_padded_on_the_left() -> None:
    inputs = encoded(tokenizer(), ["a b a", "b"], "toy")
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 2], [0, 0, 1, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_a_template_brings_its_own_special_tokens() -> None:
    template = "<begin> user {{ messages[0]['content'] }}{% if add_generation_prompt %} you{% endif %}"
    assert encoded(tokenizer(template), ["a b"], "toy", chat=True)["input_ids"].tolist() == [[1, 4, 2, 3, 5]]
    assert encoded(tokenizer(template), ["a b"], "toy")["input_ids"].tolist() == [[1, 2, 3]]


def test_mistakes() -> None:
    with pytest.raises(InputError, match=r"got no tokenizer in toy; expected tokenizer\.json"):
        encoded(None, ["a"], "toy")
    with pytest.raises(InputError, match=r"chat: got true for toy.*no chat template"):
        encoded(tokenizer(), ["a"], "toy", chat=True)
    inputs = encoded(tokenizer(), ["a b a"], "toy")
    assert check_length(inputs, 6, 10) == check_length(inputs, 6, None) == 10
    with pytest.raises(InputError, match="got 11 tokens of prompt and text; expected at most 10"):
        check_length(inputs, 7, 10)
    with pytest.raises(InputError, match="max_new_tokens: got 0"):
        check_length(inputs, 0, 10)
