"""The chat templates that come with SEED's processor."""

import json

# Reads a message: `ns.images` are the images that come before its words, and `ns.body` is the rest. `message.content`
# is a text or a list of parts.
_READ_CONTENT = """
{%- set ns = namespace(images="", body="") -%}
{%- if message.content is string -%}{%- set ns.body = message.content -%}{%- else -%}
{%- for part in message.content -%}
{%- if part.type == "text" -%}{%- set ns.body = ns.body + part.text -%}
{%- elif ns.body | trim -%}{%- set ns.body = ns.body + "<image>" -%}
{%- else -%}{%- set ns.images = ns.images + "<image>" -%}{%- endif -%}
{%- endfor -%}{%- endif -%}"""
# Speaks the paper's prompts: words about an image are a question, and an image alone asks for its caption.
_QUESTION_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    + _READ_CONTENT
    + """
{%- set asked = question_prompt | default(QUESTION) -%}{%- set caption = caption_prompt | default(CAPTION) -%}
{%- if message.role == "assistant" -%}
{%- if ns.images -%}{{- ns.images -}}{%- endif -%}{%- if ns.body | trim -%}{{- " " + ns.body | trim -}}{%- endif -%}
{{- eos_token -}}
{%- elif message.role == "system" -%}
{{- ns.body | trim + "\n" -}}
{%- else -%}
{{- ns.images -}}
{%- if ns.body | trim -%}{{- asked | replace("{}", ns.body | trim) -}}{%- else -%}{{- caption -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
"""
)
# Serves longer instructions, for example after tuning on a set of conversations, in the form of LLaVA and Vicuna.
INSTRUCTION_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    + _READ_CONTENT
    + """
{%- if message.role == "assistant" -%}
{{- "ASSISTANT:" + ns.images -}}{%- if ns.body | trim -%}{{- " " + ns.body | trim -}}{%- endif -%}{{- eos_token -}}
{%- elif message.role == "system" -%}
{{- ns.body | trim + "\n" -}}
{%- else -%}
{{- "USER: " + ns.images + ns.body | trim + " " -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "ASSISTANT:" -}}{%- endif -%}
"""
)


def question_chat_template(question_prompt: str, caption_prompt: str) -> str:
    """
    Return the template of the paper's prompts, with these prompts as the default.

    So they are spoken also where the template is rendered without any, for example by the tokenizer alone, to which a
    saved repository gives the template.
    """
    template = _QUESTION_CHAT_TEMPLATE
    for place, prompt in (("QUESTION", question_prompt), ("CAPTION", caption_prompt)):
        template = template.replace(f"default({place})", f"default({json.dumps(prompt, ensure_ascii=False)})")
    return template


__all__ = ["INSTRUCTION_CHAT_TEMPLATE", "question_chat_template"]
