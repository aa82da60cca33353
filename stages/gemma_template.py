"""TranslateGemma's chat template, as the tokenizer brings it: rendered once, and told from others that would work in silence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from state.contract import MisconfiguredError

SOURCE_CODE, TARGET_CODE = "en", "es"
PROBE = "In the beginning"
END_OF_TURN = "<end_of_turn>"


@dataclass(frozen=True)
class Template:
    """TranslateGemma's chat template, rendered once: prompt = before + source + between, completion = target + after."""

    before: str
    between: str
    after: str

    def prompt(self, source: str) -> str:
        """What the model is asked to go on from; with its beginning-of-text token, so it is tokenized without special tokens."""
        return f"{self.before}{source.strip()}{self.between}"

    def completion(self, target: str) -> str:
        """What it is to learn to say: the target and its end."""
        return f"{target.strip()}{self.after}"


def read_template(tokenizer: Any) -> Template:
    """The tokenizer's chat template as the three strings around source and target, checked against direct rendering.

    Raises:
        MisconfiguredError: there is no template, it has another shape than TranslateGemma's or asks for other languages, a
            translation would not end, or a prompt would not start with exactly one beginning-of-text token.
    """
    try:
        prompt = _rendered(tokenizer, PROBE, None)
        whole = _rendered(tokenizer, PROBE, PROBE)
    except Exception as error:  # Jinja raises what the template asks for
        raise MisconfiguredError(f"the chat template is not TranslateGemma's ({' '.join(str(error).split())})") from error
    if prompt.count(PROBE) != 1 or not whole.startswith(prompt) or whole.count(PROBE) != 2:
        raise MisconfiguredError("the chat template does not put source and target into a row once each; use TranslateGemma's own")
    before, between = prompt.split(PROBE)
    template = Template(before, between, whole[len(prompt) :].split(PROBE)[1])
    for source in ("God is love.", "  Día: «sí» & <b>no</b>\n"):
        direct = _rendered(tokenizer, source, source)
        if template.prompt(source) + template.completion(source) != direct:
            raise MisconfiguredError("the chat template changes the text that it is given; use TranslateGemma's own")
    if not 0 <= before.find("English") < before.find("Spanish"):  # Gemma's own template passes over the languages in silence
        raise MisconfiguredError("the chat template does not ask for English to Spanish; use TranslateGemma's own")
    if END_OF_TURN not in template.after:
        raise MisconfiguredError(f"the chat template ends a translation without {END_OF_TURN}; use TranslateGemma's own")
    ids = tokenizer(template.prompt(PROBE), add_special_tokens=False)["input_ids"]
    starts = ids.count(tokenizer.bos_token_id)
    if starts != 1 or ids[0] != tokenizer.bos_token_id:
        raise MisconfiguredError(
            f"the chat template puts {starts} beginning-of-text tokens into a prompt instead of one at its start"
        )
    return template


def _rendered(tokenizer: Any, source: str, target: str | None) -> str:
    content = {"type": "text", "source_lang_code": SOURCE_CODE, "target_lang_code": TARGET_CODE, "text": source}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [content]}]
    if target is not None:
        messages.append({"role": "assistant", "content": target})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=target is None))
