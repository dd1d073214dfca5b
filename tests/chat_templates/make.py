#!/usr/bin/env python3
"""Makes the expected outputs that tests/chat_templates.rs compares with, by Hugging Face's own renderer.

    pip install transformers jinja2
    python make.py prompts TEMPLATES CONVERSATIONS OUTPUT    one OUTPUT/NAME.json for each TEMPLATES/NAME.jinja
    python make.py expressions CASES                         fills in the results of a file of small templates

TEMPLATES is a folder, CONVERSATIONS and CASES are JSON files, OUTPUT is a folder that exists. An output is the text,
or null where the renderer raises an error. The date is fixed, so that `strftime_now` gives the same text every day.
"""

import datetime
import json
import pathlib
import sys

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
NOW = datetime.datetime(2024, 7, 26, 9, 5, 3)


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def renderer():
    chat_template_utils.datetime = FixedDate
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, **TOKENS)


def render(tokenizer, template, case):
    """`case` holds the arguments of `apply_chat_template` by name, `variables` those of the template."""
    options = {key: case[key] for key in ("tools", "documents", "add_generation_prompt") if key in case}
    try:
        return tokenizer.apply_chat_template(
            case["messages"], chat_template=template, tokenize=False, **options, **case.get("variables", {})
        )
    except Exception as error:  # what a template raises has many types
        if "-v" in sys.argv:
            print(f"{case.get('name')}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def write(path, value):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.write("\n")


def prompts(templates, conversations, output):
    tokenizer = renderer()
    cases = json.loads(read(conversations))
    for path in sorted(pathlib.Path(templates).glob("*.jinja")):
        template = read(path)
        made = {case["name"]: render(tokenizer, template, case) for case in cases}
        write(pathlib.Path(output) / (path.stem + ".json"), made)


def expressions(path):
    tokenizer = renderer()
    file = json.loads(read(path))
    file["cases"] = [
        [template, render(tokenizer, template, {**file, "name": template})]
        for template, *_ in file["cases"]
    ]
    write(path, file)


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "-v"]
    {"prompts": prompts, "expressions": expressions}[arguments[0]](*arguments[1:])
