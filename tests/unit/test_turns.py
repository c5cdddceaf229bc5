"""Turns: how many are had at a time, and what becomes of one that takes long."""

from __future__ import annotations

import asyncio

import pytest

from brimline.turns import Turns


def test_no_more_turns_than_there_are_are_had_at_a_time() -> None:
    having = most = 0

    async def take(turns: Turns) -> None:
        nonlocal having, most
        async with turns.one():
            having += 1
            most = max(most, having)
            await asyncio.sleep(0)
            having -= 1

    async def run() -> None:
        turns = Turns(3, patience=60)
        await asyncio.gather(*(take(turns) for _ in range(20)))

    asyncio.run(run())

    assert most == 3


def test_whoever_takes_long_does_not_hold_up_the_others() -> None:
    async def run() -> None:
        turns = Turns(2, patience=0.01)
        never = asyncio.Event()

        async def hang() -> None:
            async with turns.one():
                await never.wait()

        hanging = [asyncio.ensure_future(hang()) for _ in range(10)]
        async with asyncio.timeout(60), turns.one():
            pass
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)

    asyncio.run(run())


def test_a_turn_that_fails_or_took_long_is_given_back_once() -> None:
    async def run() -> int:
        turns = Turns(1, patience=0.2)
        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                async with turns.one():
                    raise ValueError("broken")
            async with turns.one():
                await asyncio.sleep(0.3)
        having = 0

        async def take() -> None:
            nonlocal having
            async with turns.one():
                having += 1
                assert having == 1
                await asyncio.sleep(0)
                having -= 1

        await asyncio.gather(*(take() for _ in range(5)))
        return having

    assert asyncio.run(run()) == 0
