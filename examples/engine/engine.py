"""An engine of one's own: all prompts in each pass, with drafts from whoever has dialled in."""

import asyncio
import sys
from pathlib import Path

import torch

from wanspec_kernels.commands.waiting import wait_for_drafters
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.engine.model import Target
from wanspec_kernels.models import resolve_model
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.serving.drafters import DrafterSocket, now_ms
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.verify import verify_tree
from wanspec_kernels.wire.keys import AllowList, load_secret
from wanspec_kernels.wire.sampling import Sampling

ROWS, DEPTH = 8, 16  # of one request's tree


def run_pass(target, lengths, chosen, sampling):
    """What the target accepts of each request's tree, and says itself: (nodes, token ids) each."""
    tree = DraftTree.build([(s.tree.token_ids, s.tree.parents) for s in chosen.values()])
    roots = torch.tensor(lengths, dtype=torch.int32) - 1  # slots of the last committed tokens
    for (request, selection), root in zip(chosen.items(), roots.tolist(), strict=True):
        target.cache.reserve(request, root + len(selection.depths))
    page_table = target.cache.page_table(list(chosen))
    logits = target.logits(tree, roots, page_table)
    params = SamplingParams.build(tree.batch, temperature=sampling.temperature, seed=sampling.seed)
    result = verify_tree(tree, logits, params, roots.long() + 1)
    target.cache.compact(result.accepted_nodes, result.num_accepted, roots, page_table)
    found = [t.tolist() for t in (result.num_accepted, result.accepted_nodes, result.token_ids)]
    return [(nodes[:n], ids[: n + 1]) for n, nodes, ids in zip(*found, strict=True)]


async def decode(target, prompts, max_tokens, sampling, exchange, drafters):
    """Each prompt's continuation, and how many of its tokens were drafts."""
    found, num_drafted = {request: [] for request in range(len(prompts))}, 0
    for request, prompt in enumerate(prompts):
        target.prefill(request, prompt[:-1])  # The last token is the root of the first tree.
        exchange.open(request, prompt, sampling, now_ms())
    while exchange.texts:
        drafters.send()  # OPEN and COMMIT; drafts come while the pass below runs
        chosen, lengths = {}, []
        for request, text in exchange.texts.items():
            room = max_tokens - len(found[request])
            chosen[request] = text.pool.select(ROWS, min(DEPTH, room - 1))
            text.pool.pass_begins()
            lengths.append(text.pool.length)
        verdicts = await asyncio.to_thread(run_pass, target, lengths, chosen, sampling)
        for (request, selection), (nodes, token_ids) in zip(chosen.items(), verdicts, strict=True):
            drafted_by = [selection.sources[node][0] for node in nodes]
            exchange.commit(request, token_ids, drafted_by, now_ms())
            found[request] += token_ids
            num_drafted += len(nodes)
            if len(found[request]) == max_tokens:
                exchange.close(request, "length")
                target.cache.free(request)
    drafters.send()  # CLOSE
    return list(found.values()), num_drafted


async def serve(bind, key, allowed, prompts, max_tokens):
    target = Target.load(resolve_model("bundled:target"))
    exchange = Exchange(vocabulary=target.vocabulary, vocab_size=target.vocab_size, now=now_ms())
    secret, enrolled = load_secret(Path(key)), AllowList(Path(allowed))
    drafters = DrafterSocket(bind, exchange=exchange, secret=secret, allowed=enrolled)
    await drafters.start()
    await wait_for_drafters(exchange, drafters.address, 1, print)
    ids = [target.tokenizer(prompt)["input_ids"] for prompt in prompts]
    texts, num_drafted = await decode(target, ids, max_tokens, Sampling(), exchange, drafters)
    await drafters.close()
    print(*map("{}{}\n".format, prompts, target.tokenizer.batch_decode(texts)), sep="\n")
    print(f"{num_drafted} of {max_tokens * len(prompts)} tokens were drafts")


if __name__ == "__main__":  # ADDRESS SECRET-FILE ALLOWED-FOLDER PROMPT…
    asyncio.run(serve(*sys.argv[1:4], sys.argv[4:], max_tokens=64))
