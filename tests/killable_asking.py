"""Asking in a process of its own, which may be ended at any moment."""

from instructblip_hf.endpoints import AnswerCache, Asker, ChatOptions, ChatRequest, OpenAiCompatible


PRELOAD = ["killable_asking", "instructblip_hf.endpoints.asking", "instructblip_hf.endpoints.openai_compatible"]


def requests(count, **options):
    return [
        ChatRequest([{"role": "user", "content": f"question {number}"}], ChatOptions(**options))
        for number in range(count)
    ]


def ask_all(url, folder):
    with AnswerCache(folder) as cache:
        list(Asker(OpenAiCompatible("gpt", url, concurrency=2), cache).ask(requests(20)))
