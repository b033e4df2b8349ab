"""examples/engine: eight requests a pass, real drafters, and the texts of greedy decoding."""

import asyncio
import importlib.util
import json
from importlib.resources import files
from pathlib import Path
from threading import Event

import pytest
import torch
from transformers import AutoModelForCausalLM

from wanspec_kernels.commands.waiting import wait_for_drafters
from wanspec_kernels.demo.processes import EmulatedLink, RemoteDrafter, make_keys
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.engine.model import Target
from wanspec_kernels.models import resolve_model
from wanspec_kernels.serving.drafters import DrafterSocket, now_ms
from wanspec_kernels.wire.keys import AllowList, load_secret
from wanspec_kernels.wire.sampling import Sampling

FOLDER = Path(__file__).parents[1] / "examples" / "engine"
REQUESTS, TOKENS = 8, 24
HELD_PASSES, NODES = 3, 8
WAIT_S = 100.0


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example_engine", FOLDER / "engine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Held:
    """A target whose first passes end only once there are drafts for each text.

    So whatever share of the machine the drafters get, they have something to accept.
    """

    def __init__(self, target):
        self._target = target
        self.may_end = Event()
        self.num_requests = []  # of each pass

    def __getattr__(self, name):
        return getattr(self._target, name)

    def logits(self, tree, *arguments):
        self.num_requests.append(tree.batch)
        if len(self.num_requests) <= HELD_PASSES:
            self.may_end.clear()
            assert self.may_end.wait(WAIT_S)
        return self._target.logits(tree, *arguments)


def greedy(model, prompt):
    ids = torch.tensor([prompt])
    text = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
    )
    return text[0, len(prompt) :].tolist()


def test_it_has_at_most_eighty_lines():
    assert len((FOLDER / "engine.py").read_text().splitlines()) <= 80


@pytest.mark.alone
def test_texts_are_those_of_greedy_decoding_and_drafts_are_accepted(example, tmp_path):
    target = Held(Target.load(resolve_model("bundled:target")))
    entries = json.loads((files("wanspec_kernels.bundled") / "prompts.json").read_text())
    texts = [entry["text"] for entry in entries] + ["def add(a, b):\n", "class Stack:\n"]
    prompts = [target.tokenizer(text)["input_ids"] for text in texts]
    assert len(prompts) == REQUESTS
    exchange = Exchange(vocabulary=target.vocabulary, vocab_size=target.vocab_size, now=now_ms())

    def on_event(_):
        if all(len(text.pool) >= NODES for text in exchange.texts.values()):
            target.may_end.set()

    exchange.events.subscribe(on_event)

    async def run():
        allowed = AllowList(make_keys(tmp_path, 2))
        drafters = DrafterSocket(
            "tcp://127.0.0.1:*",
            exchange=exchange,
            secret=load_secret(tmp_path / "verifier.secret"),
            allowed=allowed,
        )
        await drafters.start()
        link = EmulatedLink(2.0, 0.0, None)
        remotes = [RemoteDrafter.start(n, tmp_path, drafters.address, link) for n in (1, 2)]
        try:
            async with asyncio.timeout(WAIT_S):
                await wait_for_drafters(exchange, drafters.address, 2, lambda _: None)
                return await example.decode(target, prompts, TOKENS, Sampling(), exchange, drafters)
        finally:
            target.may_end.set()
            for remote in remotes:
                remote.stop()
            await drafters.close()

    found, num_drafted = asyncio.run(run())
    model = AutoModelForCausalLM.from_pretrained(resolve_model("bundled:target"))
    assert found == [greedy(model, prompt) for prompt in prompts]
    assert num_drafted >= REQUESTS
    assert target.num_requests[0] == REQUESTS
    assert len(target.num_requests) < TOKENS
    assert target.cache.num_free_pages == target.cache.num_pages
    assert not exchange.texts
