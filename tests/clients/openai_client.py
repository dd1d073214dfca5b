"""The `openai` package, as programs use it."""

import json

import openai
from pydantic import BaseModel

from common import Server, talking_model, template

USER = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["n", "of"],
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "of": {"enum": ["trits", "bits"]}},
}
TOOL = {"type": "function", "function": {"name": "set_day", "description": "sets it", "parameters": {
    "type": "object", "additionalProperties": False, "required": ["day"],
    "properties": {"day": {"type": "integer", "minimum": 1, "maximum": 31}},
}}}


class Count(BaseModel):
    n: int


with Server(talking_model(), "--template", template(), "--api-key", "k", "--name", "tiny") as server:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0)
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"

    settings = dict(model="tiny", max_tokens=20, temperature=0.8, seed=3)
    whole = client.completions.create(prompt="ab", n=2, logprobs=2, echo=True, **settings)
    assert len(whole.choices) == 2 and len(whole.choices[1].text) > 10 and whole.choices[0].text.startswith("ab")
    assert whole.usage.completion_tokens == 40 and len(whole.choices[0].logprobs.token_logprobs) == 22
    one = client.completions.create(prompt="ab", **settings).choices[0].text
    streamed = client.completions.create(prompt="ab", stream=True, stream_options={"include_usage": True}, **settings)
    pieces = list(streamed)
    assert "".join(p.choices[0].text for p in pieces if p.choices) == one
    assert pieces[-1].usage.completion_tokens == 20

    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    chat = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **settings)
    assert chat.choices[0].message.role == "assistant" and chat.usage.completion_tokens == 20
    chat = client.chat.completions.create(messages=USER, logprobs=True, top_logprobs=2, **settings)
    assert len(chat.choices[0].logprobs.content) == 20
    stream = client.chat.completions.create(messages=USER, stream=True, **settings)
    text = "".join(p.choices[0].delta.content or "" for p in stream)
    assert text == chat.choices[0].message.content

    free = dict(model="tiny", temperature=1.5, seed=1)
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(messages=USER, response_format=form, **free)
    value = json.loads(answer.choices[0].message.content)
    assert 0 <= value["n"] < 100 and value["of"] in ("trits", "bits")
    # The package makes a schema of a class, and an object of the answer. A whole number may be long: leave it little room.
    parsed = client.chat.completions.parse(messages=USER, response_format=Count, max_tokens=400, **free)
    assert isinstance(parsed.choices[0].message.parsed.n, int)

    called = client.chat.completions.create(messages=USER, tools=[TOOL], tool_choice="required", max_tokens=300, **free)
    call = called.choices[0].message.tool_calls[0]
    assert called.choices[0].finish_reason == "tool_calls" and 1 <= json.loads(call.function.arguments)["day"] <= 31
    back = USER + [called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    assert client.chat.completions.create(messages=back, tools=[TOOL], tool_choice="none", **settings).choices
    stream = client.chat.completions.create(
        messages=USER, tools=[TOOL], tool_choice="required", stream=True, max_tokens=300, **free)
    calls = [c for p in stream for c in p.choices[0].delta.tool_calls or []]
    assert calls[0].function.name == "set_day" and json.loads(calls[0].function.arguments)

    # The package asks for base64 by itself, and decodes it.
    vectors = client.embeddings.create(model="tiny", input=["one", "two"]).data
    plain = client.embeddings.create(model="tiny", input="one", encoding_format="float").data[0].embedding
    assert len(vectors) == 2 and abs(sum(x * x for x in plain) - 1) < 1e-4
    assert max(abs(a - b) for a, b in zip(vectors[0].embedding, plain)) < 1e-7

    response = client.responses.create(model="tiny", input="hello", max_output_tokens=20, temperature=0.8)
    assert response.output_text and response.usage.output_tokens == 20
    events = list(client.responses.create(model="tiny", input="hello", max_output_tokens=20, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert deltas == events[-1].response.output_text

    for wrong, kind in [
        (lambda: client.completions.create(model="other", prompt="a"), openai.NotFoundError),
        (lambda: client.completions.create(model="tiny", prompt="a", temperature=-1), openai.BadRequestError),
        (lambda: client.with_options(api_key="x").models.list(), openai.AuthenticationError),
    ]:
        try:
            wrong()
        except kind as error:
            assert error.body["message"], error
        else:
            raise AssertionError(f"wanted {kind}")
print("openai", openai.__version__, "well")
