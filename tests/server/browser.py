"""Debian's headless Chromium for tests of pages, or the reason why there is none."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@asynccontextmanager
async def opened(*, dark: bool = False, width: int = 1360, height: int = 900) -> AsyncIterator[Any]:
    """A page of a browser that talks to nobody else; what it complains of is in `page.complaints`."""
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    if not shutil.which(CHROMIUM):
        pytest.skip(f"there is no {CHROMIUM}: apt-get install chromium")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = await browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        page = await context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda said: page.complaints.append(said.text) if said.type == "error" else None)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        try:
            yield page
        finally:
            await context.close()
            await browser.close()


async def until(page: Any, truth: str) -> None:
    """Returns when an expression in the page is true. (`wait_for_function` evals, which the page forbids.)"""
    async with asyncio.timeout(30):
        while not await page.evaluate(f"() => Boolean({truth})"):
            await page.evaluate("() => new Promise(requestAnimationFrame)")
