"""The window's rules, compared with the reference's KV cache, and its slots, with a ring buffer."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from convert.checkpoint.config import ModelConfig
from runtime.inputs.prompt import Message, Prompt, PromptError, Tokenizer
from runtime.reference.kv_cache import KVCache
from runtime.sessions.reference_session import Key, ReferenceSession, _Picture, _Request
from tests.engine.components import ComponentError, Components, numbers
from tests.support.slices import TINY_SLICES
from tests.support.tiny_config import tiny_config
from tests.support.tiny_tokenizer import tokenizer_model

IMAGE_TOKENS = 9
WINDOWS = [
    (12, 4, 5, 1),
    (12, 7, 12, 1),
    (9, 8, 3, 1),
    (5, 1, 1, 1),
    (40, 13, 40, 16),
    (33, 4, 7, 8),
]


class Ring:
    """The contents of a cache's slots, from the tokens written to them."""

    def __init__(self, window: int, pinned: int, chunk: int, tile: int) -> None:
        def up(value: int) -> int:
            return -(-value // tile) * tile

        self.pinned, self.start = pinned, up(pinned)
        self.size = up(window - pinned + chunk)
        self.slots = self.start + self.size
        self.tokens: dict[int, int] = {}

    def slot(self, index: int) -> int:
        if index < self.pinned:
            return index
        return self.start + (index - self.pinned) % self.size


@pytest.mark.parametrize(("window", "pinned", "chunk", "tile"), WINDOWS)
def test_random_appends_and_truncations(
    components: Components, window: int, pinned: int, chunk: int, tile: int
) -> None:
    rng = random.Random(window)
    refused = 0
    for _ in range(30):
        cache, ring = KVCache(0, window=window, pinned=pinned), Ring(window, pinned, chunk, tile)
        slots, most = components.ints("window", f"new {window} {pinned} {chunk} {tile}")
        assert slots == ring.slots
        assert most >= chunk, "a ring of whole tiles may be longer"
        for _ in range(25):
            if rng.random() < 0.3:
                length = rng.randint(max(0, cache.length - rng.choice([1, 3, 99])), cache.length)
                expected = cache.truncate(length)
                assert components.ints("window", f"truncate {length}") == [expected]
                refused += not expected
            else:
                count = rng.choice([1, 1, rng.randint(1, most)])
                _append(components, cache, ring, count)
    assert refused > 0


def _append(components: Components, cache: KVCache, ring: Ring, count: int) -> None:
    """Appends to both; every key that a query sees must be in its slot."""
    queries = torch.arange(cache.length, cache.length + count)
    cache.extend(queries)
    visible = cache.visible(queries)
    head, *rows = components.call("window", f"append {count}").decode().split("\n")
    length, oldest, *slots = map(int, head.split())
    assert length == cache.length
    for index, slot in zip(queries.tolist(), slots, strict=True):
        assert slot == ring.slot(index)
        ring.tokens[slot] = index
    for query, row, sees in zip(queries.tolist(), rows, visible, strict=True):
        position, *keys = map(int, row.split())
        assert position == min(query, cache.window - 1)
        assert keys == cache.positions[sees].tolist()
        assert [ring.tokens[ring.slot(key)] for key in keys] == keys
    cache.evict()
    kept = [i for i in cache.positions.tolist() if i >= cache.pinned]
    assert not kept or min(kept) == oldest


def _session(window: int) -> ReferenceSession:
    backend = SimpleNamespace(
        config=SimpleNamespace(resampler=SimpleNamespace(query_num=IMAGE_TOKENS)),
        new_cache=lambda window, pinned: KVCache(0, window=window, pinned=pinned),
    )
    return ReferenceSession(backend, SimpleNamespace(), window=window)  # type: ignore[arg-type]


def _spell(keys: list[Key]) -> str:
    return " ".join(str(k) if isinstance(k, int) else f"{k[0]}:{k[1]}" for k in keys)


def test_random_requests_reuse_the_same_prefix(components: Components) -> None:
    """Requests that go on, branch off, change the picture or what is pinned."""
    rng = random.Random(0)
    window, chunk, reuses = 24, 8, []
    for _ in range(60):
        session = _session(window)
        components.call("window", f"new {window} 4 {window + chunk} 1")
        cached: list[Key] = []
        for _ in range(12):
            pinned = rng.choice([4, 4, 4, 7])
            start = cached[: rng.choice([len(cached), rng.randint(0, len(cached))])]
            more: list[Key] = [rng.choice([5, 6, ("1", 0), ("2", 0)]) for _ in range(8)]
            request = start + more[: rng.randint(not start, 8)]
            cache, reused = session._rewind(_Request(Prompt([], None), request, pinned))
            reply = components.ints("window", f"rewind {pinned}", _spell(cached), _spell(request))
            assert reply == [reused]
            reuses.append(reused)
            while cache.length < len(request):
                count = min(chunk, len(request) - cache.length)
                components.call("window", f"append {count}")
                cache.extend(torch.arange(cache.length, cache.length + count))
                cache.evict()
            session._cached = cached = request
    assert reuses.count(0) > 50 and len(set(reuses)) > 20


def test_requests_are_keyed_and_fitted_alike(
    components: Components, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tokenizer_model())
    tokenizer = Tokenizer(path, ModelConfig.from_json(tiny_config(**TINY_SLICES)))
    refused = 0
    for _ in range(300):
        window = rng.randint(3, 110)
        session = _session(window)
        session.tokenizer = tokenizer
        messages: list[Message] = [
            {"role": "assistant" if i % 2 else "user", "content": "x" * rng.randint(1, 25)}
            for i in range(rng.choice([1, 3]))
        ]
        picture = rng.choice(["", "77"])
        grid = rng.choice([None, (1, 2), (2, 2)]) if picture else None
        image_tokens = IMAGE_TOKENS if picture else 0
        prompt = tokenizer.prompt(messages, image_tokens, grid=grid)
        end = prompt.picture_end(image_tokens)
        pinned = components.ints("window", f"pinned {-1 if end is None else end}")[0]
        last = len(tokenizer.encode("<用户>" + messages[-1]["content"] + "<AI>"))
        fit = f"fit {window} {pinned} {last} {len(prompt.ids)} {int(grid is not None)}"
        try:
            request = session._request(messages, _Picture([], grid, picture) if picture else None)
        except PromptError as error:
            refused += 1
            with pytest.raises(ComponentError, match=r"^prompt_too_long: ") as caught:
                components.call("window", fit)
            assert str(error).partition(":")[0] in str(caught.value)
            assert ("lower max_slices" in str(caught.value)) == (grid is not None)
            continue
        components.call("window", fit)
        assert pinned == request.pinned
        fields = (numbers(prompt.image_starts), numbers(prompt.ids))
        keys = components.call("window", f"keys {image_tokens} {picture or 0}", *fields)
        assert keys.decode().strip() == _spell(request.keys)
    assert 50 < refused < 250


@pytest.mark.parametrize(("window", "pinned"), [(4, 4), (3, 4), (66, 67)])
def test_windows_without_room_are_refused(components: Components, window: int, pinned: int) -> None:
    with pytest.raises(PromptError):
        KVCache(0, window=window, pinned=pinned)
    with pytest.raises(ComponentError, match=r"^prompt_too_long: .* leaves no room beside"):
        components.call("window", f"new {window} {pinned} 100 1")


@pytest.mark.parametrize("operation", ["append 0", "append -1", "append 6", "truncate 1"])
def test_misuse_is_an_error_and_changes_nothing(components: Components, operation: str) -> None:
    components.call("window", "new 12 4 5 1")
    with pytest.raises(ComponentError, match=r"^internal: "):
        components.call("window", operation)
    assert components.ints("window", "truncate 0") == [1]
