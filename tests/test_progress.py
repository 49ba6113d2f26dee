"""What a long computation says of itself."""

import time
from types import SimpleNamespace

import pytest

from paper_utils import progress as module
from paper_utils.progress import progress


def lines(items, **options) -> None:
    for _ in progress(items, "edm", 10, "step", **options):
        pass


@pytest.fixture
def in_lines(monkeypatch):
    monkeypatch.setenv("PAPER_UTILS_PROGRESS", "lines")
    monkeypatch.setattr(module, "EVERY", -1.0)
    now = iter(range(100))  # a second from look to look
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(now)))


def test_plain_lines_count_and_say_how_long(in_lines, capsys):
    lines("abc", note=lambda item: f"at {item}")
    assert capsys.readouterr().err.splitlines() == [
        "edm: step 1 of 10, 9.0 min left at a", "edm: step 2 of 10, 8.0 min left at b",
        "edm: step 3 of 10, 7.0 min left at c"]


def test_work_that_goes_on_says_so_and_counts_only_its_own_time(in_lines, capsys):
    lines([7, 8], done=lambda item: item)
    assert capsys.readouterr().err.splitlines() == [
        "edm: going on after step 6 of 10", "edm: step 7 of 10, 3.0 min left ",
        "edm: step 8 of 10, 2.0 min left "]


def test_a_bar_begins_where_the_work_goes_on(monkeypatch, capsys):
    monkeypatch.setenv("PAPER_UTILS_PROGRESS", "bar")
    from tqdm import auto

    seen, rates = [], []

    class Bar(auto.tqdm):
        def close(self):
            seen.append((self.initial, self.n, self.total))
            rates.append(self.format_dict["rate"])
            super().close()

    monkeypatch.setattr(auto, "tqdm", Bar)
    work = lambda: (time.sleep(0.2) or 10_001 + k for k in range(10))
    lines(work(), done=lambda item: item)
    assert max(filter(None, rates)) < 100  # of this run's own steps, not of all before
    seen.clear()
    lines([7, 8], done=lambda item: item)
    lines("abcd")
    assert list(dict.fromkeys(seen)) == [(6, 8, 10), (0, 4, 10)]


def test_nothing_is_said_without_a_title_or_when_off(monkeypatch, capsys):
    monkeypatch.setenv("PAPER_UTILS_PROGRESS", "off")
    lines("abc")
    monkeypatch.setenv("PAPER_UTILS_PROGRESS", "bar")
    assert list(progress("abc", "", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
