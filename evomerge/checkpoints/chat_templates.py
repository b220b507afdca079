"""Chat templates by name, in Jinja: the well-known formats that mergekit knows by the same names.

A message is a mapping of `role` and `content`; a template sees `messages`, `add_generation_prompt`, `bos_token` and
`eos_token`.
"""

from __future__ import annotations

ALPACA = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content | trim }}
{%- elif message.role == 'user' -%}
### Instruction:
{{ message.content | trim }}
{%- elif message.role == 'user_context' -%}
### Input:
{{ message.content | trim }}
{%- elif message.role == 'assistant' -%}
### Response:
{{ message.content | trim }}
{%- endif -%}
{{ '\\n\\n' if not loop.last }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '\\n\\n### Response:\\n' }}
{%- endif -%}
"""
"""Stanford Alpaca (2023): headed sections with an empty line between them."""

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
"""ChatML (OpenAI, 2023)."""

EXAONE = """\
{%- if messages and messages[0].role != 'system' -%}
{{ '[|system|][|endofturn|]\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '[|' ~ message.role ~ '|]' ~ message.content ~ ('' if message.role == 'user' else '[|endofturn|]') ~ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '[|assistant|]' }}
{%- endif -%}
"""
"""EXAONE 3 (LG AI Research, 2024): an empty system turn stands where there is none."""

LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content | trim ~ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""
"""Llama 3 (Meta, 2024)."""

MISTRAL = """\
{{- bos_token -}}
{%- set state = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set state.system = message.content ~ '\\n\\n' -%}
{%- elif message.role == 'user' -%}
{{ ' [INST] ' ~ state.system ~ message.content ~ ' [/INST]' }}
{%- set state.system = '' -%}
{%- elif message.role == 'assistant' -%}
{{ ' ' ~ message.content ~ eos_token }}
{%- else -%}
{{ raise_exception('Mistral knows the roles system, user and assistant, not ' ~ message.role) }}
{%- endif -%}
{%- endfor -%}
"""
"""Mistral Instruct (2023): a system text opens the next user turn."""

CHAT_TEMPLATES = {"alpaca": ALPACA, "chatml": CHATML, "exaone": EXAONE, "llama3": LLAMA3, "mistral": MISTRAL}
