"""The Modelfile that makes an Ollama model of a GGUF pair: `ollama create NAME -f Modelfile`.

Ollama renders prompts itself, by a template in Go's text/template. It is written from the pieces of the model's Chat,
each as a quoted text, so that no space or newline depends on how the template is laid out.
"""

from __future__ import annotations

import json
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished
from minipovid.models.chat_template import Chat


def write_modelfile(folder: Path, chat: Chat, text: Path, mmproj: Path, first: str = "") -> Path:
    """Write FOLDER/Modelfile for two files of that folder; `first` stands before every prompt (a space, or nothing).

    Greedy, as minipovid answers, and without Ollama's penalty on repeated words, which would change greedy answers.
    Raises MinipovidError for a format that a Modelfile cannot hold.
    """
    template, stop = go_template(chat, first), chat.end.strip()
    if '"' in stop or "\n" in stop:
        raise MinipovidError(f"An answer of this model ends in {stop!r}, which a Modelfile cannot name as a stop.")
    lines = [
        f"FROM ./{text.name}",
        f"FROM ./{mmproj.name}",
        f'TEMPLATE """{template}"""',
        f'PARAMETER stop "{stop}"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
    ]
    path = folder / "Modelfile"
    with finished(path) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def go_template(chat: Chat, first: str = "") -> str:
    """`chat.render` in Go: of system, user and assistant turns, ready for the next answer unless one stands last.

    A picture's mark is part of the content: Ollama puts it before the text, or where the text says `[img]`.
    """
    begin = _text(chat.begin)
    if begin and chat.system:
        begin = f"{{{{ if not .System }}}}{begin}{{{{ end }}}}"
    system = f"{_text(chat.system[0])}{{{{ .Content }}}}{_text(chat.system[1])}" if chat.system else ""
    before, between, behind = chat.user
    opens_user = "" if chat.system else '{{ if and $.System (eq $i 1) }}{{ $.System }}{{ "\\n\\n" }}{{ end }}'
    return "\n".join(
        [
            _text(first) + begin + "{{- range $i, $_ := .Messages }}",
            f'{{{{- if eq .Role "system" }}}}{system}',
            f'{{{{- else if eq .Role "user" }}}}{_text(before + between)}{opens_user}{{{{ .Content }}}}{_text(behind)}',
            f"{{{{- if eq (len (slice $.Messages $i)) 1 }}}}{_text(chat.opening)}{{{{ end }}}}",
            '{{- else if eq .Role "assistant" }}'
            f"{_text(chat.assistant)}{{{{ .Content }}}}"
            f"{{{{ if gt (len (slice $.Messages $i)) 1 }}}}{_text(chat.end + chat.after)}{{{{ end }}}}",
            "{{- end }}",
            "{{- end }}",
        ]
    )


def _text(piece: str) -> str:
    """An action that prints the piece, wherever it stands. JSON's strings are strings to Go as well."""
    return f"{{{{ {json.dumps(piece, ensure_ascii=False)} }}}}" if piece else ""
