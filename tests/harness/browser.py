"""Prefect's dashboard in a real browser: Debian's Chromium, driven by Playwright.

The dashboard's first version, which is the default: its labels are not bound to inputs, so that a field is found as
what follows its label, and its selects open by key only.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from playwright.sync_api import Locator, Page, Response, sync_playwright
from prefect.client.schemas.responses import DeploymentResponse

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_SECONDS = 300
TRIES = 5
INPUT = "*[self::textarea or self::input[not(@type='checkbox')]]"
SELECT = "button[contains(@class, 'p-select-button')]"


@contextmanager
def open_page() -> Iterator[Page]:
    """Yield an empty page; skips the test where Chromium is not installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed: as root, type `make system`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=list(FLAGS), timeout=PATIENCE_SECONDS * 1000
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1800})
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        yield page
        browser.close()


def take_picture(page: Page, name: str, folder: Path) -> None:
    """Write a picture to the folder that SLMPACK_SCREENSHOTS names, else to `folder`."""
    chosen = Path(os.environ.get("SLMPACK_SCREENSHOTS", folder))
    chosen.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=chosen / f"{name}.png")


class Form:
    """The form of a deployment's custom run."""

    def __init__(self, page: Page, dashboard: str, deployment: DeploymentResponse) -> None:
        self._page = page
        self._schema: dict[str, Any] = deployment.parameter_openapi_schema or {}
        page.goto(f"{dashboard}/deployments/deployment/{deployment.id}")
        page.get_by_role("button", name="Run", exact=True).first.click()
        page.get_by_text("Custom run").first.click()
        self._after("source", INPUT).wait_for()

    def write(self, parameter: str, value: str) -> None:
        """Fill in a text."""
        self._after(parameter, INPUT).fill(value)

    def write_optional(self, parameter: str, kind: str, value: str) -> None:
        """Fill in a text that may be nothing: it is that until its kind, `str` or `path`, is chosen."""
        self._after(parameter, f"*[normalize-space(.)='{kind}']").click()
        self.write(parameter, value)

    def choose(self, parameter: str, option: str) -> None:
        """Choose an option of a select."""
        self._after(parameter, SELECT).focus()
        self._page.keyboard.press("ArrowDown")
        self._page.get_by_role("option", name=option, exact=True).click()

    def options(self, parameter: str) -> list[str]:
        """Return what a select offers."""
        self._after(parameter, SELECT).focus()
        self._page.keyboard.press("ArrowDown")
        self._page.get_by_role("option").first.wait_for()
        options = self._page.get_by_role("option").all_inner_texts()
        self._page.keyboard.press("Escape")
        return options

    def call(self, name: str) -> None:
        """Name the run; the dashboard has made a name up."""
        self._page.locator(".flow-run-name-input input").fill(name)

    def submit(self) -> Response:
        """Return what the server answers: 201 with the run, or why not.

        A server on SQLite that is busy answers 503, and a person presses the button again.
        """
        for _ in range(TRIES):
            with self._page.expect_response(lambda response: response.url.endswith("/create_flow_run")) as answered:
                self._page.get_by_role("button", name="Submit").click()
            if answered.value.status != 503:
                break
        return answered.value

    def _after(self, parameter: str, what: str) -> Locator:
        """Find what follows the parameter's label; one of a group is `group.parameter`."""
        label = self._title(*parameter.split("."))
        xpath = f'xpath=//label[starts-with(normalize-space(.), "{label}")]/following::{what}[1]'
        return self._page.locator(xpath).first

    def _title(self, *names: str) -> str:
        """Return the title of a parameter, or of one in its group, or in a group of that."""
        group, shown = self._schema, {}
        defined: dict[str, Any] = {}
        for name in names:
            shown = group["properties"][name]
            group = defined = self._schema.get("definitions", {}).get(str(shown.get("$ref")).rpartition("/")[2], {})
        return str(shown.get("title") or defined["title"])  # a title that both have stands once


class Resume:
    """The form by which a suspended run goes on."""

    def __init__(self, page: Page, dashboard: str, run: UUID) -> None:
        self._page, self._address = page, f"{dashboard}/runs/flow-run/{run}"
        self._open()

    def _open(self) -> None:
        self._page.goto(self._address)
        self._page.get_by_role("button", name="Resume").first.click()
        self._page.get_by_text("Your name").first.wait_for()

    def approve(self, approver: str) -> None:
        """Say yes, with a name; again where Prefect's server says that its SQLite file was locked just then."""
        answers = []
        for _ in range(TRIES):
            answers.append(answer := self._press(approver))
            if answer.get("status") == "ACCEPT":
                return
            self._open()
        raise AssertionError(answers)

    def _press(self, approver: str) -> "dict[str, Any]":
        """Fill in the form and send it; return what the server says of the run's state."""
        label = "xpath=//label[starts-with(normalize-space(.), '{}')]/following::{}[1]"
        self._page.locator(label.format("Your name", "textarea")).fill(approver)
        self._page.locator(label.format("Approve", "input")).dispatch_event("click")
        with self._page.expect_response(lambda response: response.url.endswith("/resume")) as found:
            self._page.get_by_role("button", name="Submit").last.click()
        return dict(found.value.json())


def links_to(page: Page, address: str, *texts: str) -> list[Locator]:
    """Return the links of the page that lead to a server, once those with these texts are there."""
    for text in texts:
        page.locator(f'a[href^="{address}"]', has_text=text).first.wait_for()
    return page.locator(f'a[href^="{address}"]').all()


def open_run(page: Page, dashboard: str, run: UUID) -> None:
    """Open the page of a run, with its artifacts."""
    page.goto(f"{dashboard}/runs/flow-run/{run}?tab=Artifacts")
    page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).first.click()
