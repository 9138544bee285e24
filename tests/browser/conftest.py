"""Chromium, and a page in it that must stay quiet: no error, nothing on the console, nothing asked of a network."""

import shutil

import pytest

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if "/browser/" in str(item.path):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a file as a reader would, `width` pixels wide."""
    noise, contexts = [], []

    def open_page(path, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        reader = context.new_page()
        reader.set_default_timeout(10_000)
        reader.on("console", lambda message: noise.append(f"console: {message.text}"))
        reader.on("pageerror", lambda error: noise.append(f"error: {error}"))
        reader.on("request", lambda request: noise.append(request.url) if request.url != path.as_uri() else None)
        reader.goto(path.as_uri())
        return reader

    yield open_page
    for context in contexts:
        context.close()
    assert not noise
