"""TranslateGemma's chat template is told from every other before a row is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from stages import tiny
from stages.gemma_template import read_template
from state.contract import MisconfiguredError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny Gemma."""
    path = tmp_path_factory.mktemp("gemma")
    tiny.make_gemma(path, tiny.sample_pairs()[:60], "a")
    return path


PLAIN_GEMMA = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{{- '<start_of_turn>' ~ ('model' if message['role'] == 'assistant' else message['role']) ~ '\n' -}}"
    "{{- (message['content'] if message['content'] is string else message['content'][0]['text']) | trim ~ '<end_of_turn>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
)
"""A chat template that takes TranslateGemma's messages and leaves the languages out."""

TEMPLATES = {
    "none": (None, "is not TranslateGemma's"),
    "another shape": ("{{ messages[0]['content']['text'] }}", "once each"),
    "no beginning": (tiny.CHAT_TEMPLATE.replace("{{- bos_token -}}", ""), "puts 0 beginning-of-text"),
    "two beginnings": (
        tiny.CHAT_TEMPLATE.replace("{{- bos_token -}}", "{{- bos_token ~ bos_token -}}"),
        "puts 2 beginning-of-text",
    ),
    "changes the text": (
        tiny.CHAT_TEMPLATE.replace('item["text"] | trim', 'item["text"] | trim | replace("í", "i")'),
        "changes the text",
    ),
    "Gemma's own": (PLAIN_GEMMA, "does not ask for English to Spanish"),
    "swapped languages": (
        tiny.CHAT_TEMPLATE.replace("source_lang_code", "?")
        .replace("target_lang_code", "source_lang_code")
        .replace("?", "target_lang_code"),
        "does not ask for English to Spanish",
    ),
    "no end": (tiny.CHAT_TEMPLATE.replace("<end_of_turn>", ""), "ends a translation without <end_of_turn>"),
    "forgets the source": (tiny.CHAT_TEMPLATE.replace('~ item["text"] | trim ', ""), "once each"),
}


@pytest.mark.parametrize("fault", TEMPLATES)
def test_a_template_that_would_train_on_wrong_rows_is_refused(folder: Path, fault: str) -> None:
    """The template is rendered once at the start and compared with what training will feed."""
    template, words = TEMPLATES[fault]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    with pytest.raises(MisconfiguredError, match=words):
        read_template(tokenizer)
