"""Clients that others have written get the answers of the checkpoint: openai, litellm, lmms-eval and VLMEvalKit."""

import asyncio
import base64
import json
from pathlib import Path

import openai
import pytest
from PIL import Image

from support.environments import call, environment
from support.harnesses import LMMS_CODE, LMMS_TASK
from vlm.models.answers import answer
from vlm.models.session import user_turn

NAME = "tiny"
BUDGET = 10


@pytest.fixture
def asked(parts, tmp_path):
    """Pictures, questions, and what the checkpoint answers.

    VLMEvalKit sends JPEG, which gray pictures survive, and enlarges what has an edge below 100 pixels.
    """
    model, processor = parts
    rows = []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (120 + 80 * i, 120), (40 * i + 20,) * 3).save(path)
        question = f"Is there a cat in picture {i}?"
        prompt = processor.encode([user_turn(question, [path], [], processor.template)])
        text = answer(model, processor, [prompt], max_new_tokens=BUDGET)[0].text
        rows.append({"id": str(i), "path": str(path), "question": question, "gold": "no", "answer": text})
    assert len({row["answer"] for row in rows}) > 1
    return rows


def messages(row):
    url = "data:image/png;base64," + base64.b64encode(Path(row["path"]).read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": row["question"]}]
    return [{"role": "user", "content": parts}]


def test_the_official_asynchronous_client_with_and_without_a_stream(server, asked):
    async def ask(row, stream):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            settings = {"model": NAME, "messages": messages(row), "max_completion_tokens": BUDGET}
            if not stream:
                return (await client.chat.completions.create(**settings)).choices[0].message.content
            pieces = await client.chat.completions.create(**settings, stream=True)
            return "".join([p.choices[0].delta.content or "" async for p in pieces if p.choices])

    async def crowd():
        return await asyncio.gather(*(ask(row, stream) for stream in (False, True) for row in asked))

    assert asyncio.run(crowd()) == [row["answer"] for row in asked] * 2


LITELLM = """
import asyncio, json, sys
import litellm

rows, url = json.load(open(sys.argv[1])), sys.argv[2]
out = []
for row in rows:
    settings = dict(model="openai/tiny", api_base=url, api_key="none", messages=row["messages"], max_tokens=10)
    whole = litellm.completion(**settings)
    pieces = litellm.completion(**settings, stream=True)
    streamed = "".join(p.choices[0].delta.content or "" for p in pieces)
    later = asyncio.run(litellm.acompletion(**settings))
    out.append([whole.choices[0].message.content, streamed, later.choices[0].message.content])
try:
    litellm.completion(**{**settings, "model": "openai/nobody"})
except litellm.NotFoundError as error:
    out.append(str(error))
print("RESULT" + json.dumps(out))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_litellm(server, asked, tmp_path, request):
    python = environment(request.config.cache, "litellm")
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": messages(row)} for row in asked]))
    (tmp_path / "ask.py").write_text(LITELLM)
    said = call(python, tmp_path, tmp_path / "ask.py", tmp_path / "rows.json", f"{server.url}/v1").stdout
    *rows, refusal = json.loads(said.split("RESULT")[1])
    assert rows == [[row["answer"]] * 3 for row in asked]
    assert "no model 'nobody'" in refusal


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_openai_model_of_lmms_eval(server, asked, tmp_path, request):
    python = environment(request.config.cache, "lmms-eval==0.7.3")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tasks / "mini_pope.yaml").write_text(LMMS_TASK.replace("ROWS", str(rows)))
    (tasks / "mini_pope.py").write_text(LMMS_CODE)
    model = f"model={NAME},base_url={server.url}/v1,api_key=none,timeout=120"
    arguments = ["--model", "openai", "--model_args", model, "--tasks", "mini_pope", "--include_path", tasks]
    call(python, tmp_path, "-m", "lmms_eval", *arguments, "--output_path", tmp_path / "out", "--log_samples")
    (samples,) = (tmp_path / "out").rglob("*samples_mini_pope.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    assert {s["doc_id"]: s["filtered_resps"] for s in found} == {i: row["answer"] for i, row in enumerate(asked)}


VLMEVALKIT = """
import json, sys
from vlmeval.api import GPT4V

rows, url = json.load(open(sys.argv[1])), sys.argv[2]
model = GPT4V(model="tiny", api_base=url + "/chat/completions", key="none", temperature=0, max_tokens=10, img_size=-1,
              retry=1, verbose=True)
parts = lambda row: [dict(type="image", value=row["path"]), dict(type="text", value=row["question"])]
print("RESULT" + json.dumps([model.generate(parts(row)) for row in rows]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_openai_model_of_vlmevalkit(server, asked, tmp_path, request):
    python = environment(request.config.cache, "ms-vlmeval==0.0.20")
    (tmp_path / "rows.json").write_text(json.dumps(asked))
    (tmp_path / "ask.py").write_text(VLMEVALKIT)
    said = call(python, tmp_path, tmp_path / "ask.py", tmp_path / "rows.json", f"{server.url}/v1").stdout
    found = json.loads(said.split("RESULT")[1])
    assert [text.strip() for text in found] == [row["answer"].strip() for row in asked]
