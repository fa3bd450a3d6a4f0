"""Where dropped sessions wait: one taker each, expiry, bounds; the same tests on memory and on a real Redis."""

import asyncio
from collections.abc import Iterator

import pytest
from redis_server import free_port, running_redis

from asr.errors import ConfigError
from server.store import MemoryStore, RedisStore, StoreError, make_store

SECONDS = 20.0


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return "memory" if request.param == "memory" else str(request.getfixturevalue("redis_url"))


def run(main) -> None:  # type: ignore[no-untyped-def]
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await main()

    asyncio.run(limited())


def test_what_is_put_is_taken_once(url: str) -> None:
    async def main() -> None:
        store, value = make_store(url, 1000), bytes(range(256))
        await store.put("a", value, 60)
        assert [await store.take(key) for key in ("b", "a", "a")] == [None, value, None]
        await store.close()

    run(main)


def test_of_many_takers_one_gets_it(url: str) -> None:
    async def main() -> None:
        store = make_store(url, 1000)
        for n in range(20):
            await store.put("k", b"%d" % n, 60)
            got = await asyncio.gather(*(store.take("k") for _ in range(10)))
            assert [value for value in got if value is not None] == [b"%d" % n]
        await store.close()

    run(main)


def test_it_expires(url: str) -> None:
    async def main() -> None:
        store = make_store(url, 1000)
        await store.put("k", b"x", 0.05)
        await asyncio.sleep(0.15)
        assert await store.take("k") is None
        await store.close()

    run(main)


def test_the_last_value_holds(url: str) -> None:
    async def main() -> None:
        store = make_store(url, 1000)
        await store.put("k", b"one", 60)
        await store.put("k", b"two", 60)
        assert [await store.take("k"), await store.take("k")] == [b"two", None]
        await store.close()

    run(main)


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    async def main() -> None:
        now = [0.0]
        store = MemoryStore(100, clock=lambda: now[0])
        for n in range(5):
            await store.put(str(n), bytes(30), 60)
            assert store.bytes <= 100
        assert [len(await store.take(str(n)) or b"") for n in range(5)] == [0, 0, 30, 30, 30]
        assert store.bytes == 0
        with pytest.raises(StoreError, match="does not fit"):
            await store.put("large", bytes(101), 60)
        await store.put("old", bytes(90), 10)
        now[0] = 11.0
        await store.ping()
        assert len(store) == 0 and store.bytes == 0

    run(main)


def test_another_process_may_take_it(redis_url: str) -> None:
    async def main() -> None:
        one, other = RedisStore(redis_url), RedisStore(redis_url)
        await one.put("k", b"state", 60)
        assert await other.take("k") == b"state" and await one.take("k") is None
        await one.close()
        await other.close()

    run(main)


def test_a_redis_that_is_away_is_an_error_in_time_and_shows_no_password() -> None:
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")

    async def main() -> None:
        store = RedisStore(f"redis://:s3cret@127.0.0.1:{free_port()}/0")
        for call in (store.put("k", b"x", 1), store.take("k"), store.ping()):
            with pytest.raises(StoreError) as error:
                await call
            assert "s3cret" not in str(error.value) and "\n" not in str(error.value)
        await store.close()

    run(main)


def test_a_redis_that_says_nothing_is_an_error_in_time() -> None:
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")

    async def main() -> None:
        mute = await asyncio.start_server(lambda reader, writer: asyncio.sleep(30), "127.0.0.1", 0)
        store = RedisStore(f"redis://127.0.0.1:{mute.sockets[0].getsockname()[1]}/0", seconds=0.2)
        with pytest.raises(StoreError, match="does not answer"):
            await store.take("k")
        await store.close()
        mute.close()

    run(main)


def test_a_wrong_password_is_an_error() -> None:
    with running_redis("--requirepass", "right") as url:

        async def main() -> None:
            right = RedisStore(url.replace("//", "//:right@"))
            await right.ping()
            wrong = RedisStore(url.replace("//", "//:wrong@"))
            with pytest.raises(StoreError):
                await wrong.ping()
            await right.close()
            await wrong.close()

        run(main)


def test_a_redis_that_went_away_and_came_back_serves_again() -> None:
    async def main() -> None:
        port = free_port()
        with running_redis(port=port) as url:
            store = RedisStore(url)
            await store.put("k", b"x", 60)
        with pytest.raises(StoreError):
            await store.take("k")
        with running_redis(port=port):
            await store.put("k", b"y", 60)
            assert await store.take("k") == b"y"
        await store.close()

    run(main)


def test_addresses_that_are_none() -> None:
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")
    with pytest.raises(ConfigError):
        make_store("redis://host:notaport/0", 1)
