"""Small tokenizers of three kinds, with the chat templates of as many families, for the tests of conversations."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel, Metaspace
from tokenizers.pre_tokenizers import ByteLevel as ByteLevelSplit
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

# ChatML as SmolLM2 has it: a system message comes in by itself.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nbe nice<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 2: the system's words inside the first user turn, words trimmed, a beginning token before every user turn.
LLAMA2 = (
    "{% set head = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set head = '<<SYS>> ' + messages[0]['content'] + ' <</SYS>> ' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (head if loop.first else '') + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('what is ' + message['role']) }}{% endif %}{% endfor %}"
)
# Qwen 3: the last answer has an empty thought before it, those before have none.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% set words = message['content'].split('</think>')[-1] %}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ words + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_WORDS = Regex(r"\n| ?\w+| ?[^\w\s]| ")


def by_words(template: str | None, words: str, **special: str) -> PreTrainedTokenizerFast:
    """Every token a word with the space before it, a mark or a line break; ``words`` are the vocabulary."""
    split = pre_tokenizers.Split(_WORDS, "isolated")
    return _built(models.WordLevel(_vocabulary(words.split(",")), unk_token="<unk>"), split, None, template, special)


def by_pieces(template: str | None, words: str, **special: str) -> PreTrainedTokenizerFast:
    """As sentencepiece does it: ``▁`` for a space, and before the first word of all."""
    split = pre_tokenizers.Metaspace(prepend_scheme="first")
    model = models.WordLevel(_vocabulary(words.split(",")), unk_token="<unk>")
    return _built(model, split, Metaspace(prepend_scheme="first"), template, special)


def by_bytes(template: str | None, text: str, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2's, trained on ``text``: it takes any text, and merges line breaks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevelSplit(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    alphabet = ByteLevelSplit.alphabet()
    tokenizer.train_from_iterator([text], BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return _wrapped(tokenizer, template, special)


def _vocabulary(words: list[str]) -> dict[str, int]:
    return {word.replace("\\n", "\n"): number for number, word in enumerate(["<unk>", *dict.fromkeys(words)])}


def _built(
    model: models.Model,
    split: pre_tokenizers.PreTokenizer,
    decoder: Metaspace | None,
    template: str | None,
    special: dict[str, str],
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    if decoder is not None:
        tokenizer.decoder = decoder
    return _wrapped(tokenizer, template, special)


def _wrapped(tokenizer: Tokenizer, template: str | None, special: dict[str, str]) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = template
    return wrapped


CHATML_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
