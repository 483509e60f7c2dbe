"""What listings look like: nothing that is copied is ever cut, and times and reasons read well."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from control_plane.cli.checks import check_home, ports_in_use_by
from control_plane.cli.logs import event_line, lines_of, readable
from control_plane.cli.output import clock, lay_out, sentence
from control_plane.embedded.home import Home

COLUMNS = ("ID", "URL", "ERROR")
ROWS = [("a", "http://127.0.0.1:7071/e/chat/v1", "The file is truncated."), ("b", "http://x", None)]


def test_a_table_that_fits_has_a_line_for_each_row() -> None:
    lines = [line.plain for line in lay_out(COLUMNS, ROWS, 80)]
    assert len(lines) == 3
    assert [line.index(word) for line, word in zip(lines, ("ERROR", "The file", "-"), strict=True)] == [37, 37, 37]
    assert not any(line.endswith(" ") for line in lines)


def test_a_table_that_does_not_fit_puts_the_long_column_below_and_folds_nothing() -> None:
    lines = [line.plain for line in lay_out(COLUMNS, ROWS, 50)]
    assert lines == ["ID  URL", f"a   {ROWS[0][1]}", "  The file is truncated.", "b   http://x"]
    assert ROWS[0][1] in lay_out(COLUMNS, ROWS, 10)[1].plain
    assert len(lay_out(COLUMNS, ROWS, None)) == 3


def test_what_was_said_becomes_a_sentence() -> None:
    assert [sentence(text) for text in ("it is no GGUF file", "Done.", " ")] == [
        *("it is no GGUF file.", "Done.", "it ended without a reason.")
    ]


def test_a_time_has_its_date_only_where_that_is_not_todays() -> None:
    now = datetime(2026, 5, 4, 12, 30, 1, tzinfo=UTC).astimezone()
    assert clock(now.isoformat(), now) == f"{now:%H:%M:%S}"
    assert clock((now - timedelta(days=2)).isoformat(), now).startswith("2026-05-0")


def test_a_change_of_number_is_told_with_its_numbers() -> None:
    event = {"at": "2026-01-01T00:00:00Z", "kind": "endpoint", "subject": "chat", "type": "scaled"}
    line = event_line({**event, "reason": "No work for 30 s.", "data": {"from": 1, "to": 0}}, 6)
    assert line.endswith("endpoint  chat    scaled     1 → 0: No work for 30 s.")
    assert event_line({**event, "data": None}, 0).endswith("scaled     ")


def test_log_lines_are_shortened_where_they_are_ours() -> None:
    ours = {"event": "request ended", "level": "info", "endpoint": "chat", "ms": 2.5, "why": "a b", "failure": None}
    assert readable(json.dumps(ours) + "\n") == 'info  request ended  ms=2.5 why="a b"\n'
    assert [readable(line) for line in ("plain\n", "[1]\n", '{"a": 1}\n')] == ["plain\n", "[1]\n", '{"a": 1}\n']
    assert list(lines_of(iter(["on", "e\ntw", "o"]))) == ["one\n", "two\n"]


def test_doctor_tries_to_write_into_the_home(tmp_path: Path) -> None:
    assert check_home(tmp_path / "new" / "home").verdict == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", Path("/proc/nowhere")):
        finding = check_home(root)
        assert finding.verdict == "fault" and "--home" in finding.remedy


@pytest.mark.parametrize("made", [True, False])
def test_doctor_looks_at_the_usual_ports_where_nothing_runs(tmp_path: Path, made: bool) -> None:
    home = Home(tmp_path / "home")
    if made:
        home.create()
    assert ports_in_use_by(home) == (7070, 7071)
