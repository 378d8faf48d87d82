"""Answers through a server: our client, which lays prompts out, stores every answer and has 32 requests under
way, against a bare client that posts the same requests, 32 under way too.

The prompts are some 256 of the toy's tests, of the folder runs/tiny/final (or the second argument's), which the
server at the first argument (http://HOST:PORT) has. Greedy, at most 64 new tokens; alternated, the median of
the rounds' ratios.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from side_by_side import alternate, figure, over
from toy_items import toy_items

EACH, NEW, ROUNDS, REQUESTS = 37, 64, 7, 32


def main() -> None:
    from megatron_bar.data.chat import ChatFormat
    from megatron_bar.data.tokenizer import load_tokenizer
    from megatron_bar.evaluation.benchmarks.answers import AnswerFile
    from megatron_bar.evaluation.benchmarks.asking import ask_server
    from megatron_bar.evaluation.benchmarks.completions import CompletionServer
    from megatron_bar.weights.hf_config import read_config

    url = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/tiny/final")
    chats = ChatFormat(load_tokenizer(folder), "own")
    server = CompletionServer.at(url)
    positions = server.positions or read_config(folder).max_positions
    items = toy_items(chats, folder.parent / "world", each=EACH, new=NEW, positions=positions)
    prompts = [items.prompt(row, 0, ()) for row in items.rows]

    def ours(place: Path) -> list[str]:
        file = AnswerFile(place / "toy.jsonl", {}, items.units, each=1, write=True)
        ask_server([(items, file)], server, requests=REQUESTS)
        file.close()
        return [file.found[unit].turns[0].text for unit in items.units]

    bodies = [
        {
            "model": server.model,
            "prompt": prompt.ids,
            "max_tokens": prompt.room,
            "temperature": 0.0,
            "stop_token_ids": sorted(chats.stop_ids),
        }
        for prompt in prompts
    ]
    answers: dict[str, list[str]] = {}

    def ours_anew() -> None:
        with tempfile.TemporaryDirectory() as place:
            answers["ours"] = ours(Path(place))

    def bare_client() -> None:
        answers["bare"] = asyncio.run(bare(url, bodies))

    seconds = alternate({"ours": ours_anew, "a bare client": bare_client}, ROUNDS)
    same = sum(one == other for one, other in zip(answers["ours"], answers["bare"], strict=True))
    print(f"served: {len(prompts)} prompts, {same} answers are the same in the last round")
    for name, spent in seconds.items():
        print(f"served: {name}: seconds {' '.join(f'{s:.2f}' for s in spent)}")
    figure("served_over_bare_client", over(seconds["a bare client"], seconds["ours"]), 0.9)


async def bare(url: str, bodies: list[dict]) -> list[str]:
    """Posts all bodies, `REQUESTS` at a time, over connections that are kept."""
    import aiohttp

    async def post(session: aiohttp.ClientSession, body: dict) -> str:
        async with session.post(f"{url}/v1/completions", json=body) as reply:
            return (await reply.json())["choices"][0]["text"]

    connector = aiohttp.TCPConnector(limit=REQUESTS)
    async with aiohttp.ClientSession(connector=connector) as session:
        return await asyncio.gather(*(post(session, body) for body in bodies))


if __name__ == "__main__":
    main()
