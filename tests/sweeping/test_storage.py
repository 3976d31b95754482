"""What is added to Optuna's storages: whole lines in the journal, one claim on sqlite, plain words about servers."""

from __future__ import annotations

import json
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from ivedit.errors import ConfigError, IveditError
from ivedit.sweeping.claims import Outcome, Worker
from ivedit.sweeping.storage import JOURNAL, JournalFile, open_storage, serve, shown
from ivedit.sweeping.study import StudyStore
from tests.pages import ROOT
from tests.postgres import Postgres, running, why_not
from tests.sweeping.conftest import free_port, with_package
from tests.sweeping.crowd import PROCESSES, first_start, pop_all
from tests.sweeping.stages import grid, search

ME = Worker.here("me")


# -- the journal ----------------------------------------------------------------------------------------


def numbers(journal: JournalFile) -> list[int]:
    return [line["n"] for line in journal.read_logs(0)]


@pytest.mark.parametrize("torn", [b'{"n":', b"\x00" * 10_000, b"{"])
def test_half_a_line_that_a_kill_left_is_taken_away(tmp_path: Path, torn: bytes):
    path = tmp_path / JOURNAL
    JournalFile(path).append_logs([{"n": 0}, {"n": 1}])
    with open(path, "ab") as file:
        file.write(torn)
    reader = JournalFile(path)
    assert numbers(reader) == [0, 1]
    JournalFile(path).append_logs([{"n": 2}])
    assert numbers(reader) == [0, 1, 2]
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_journal_of_nothing_but_half_a_line_begins_anew(tmp_path: Path):
    (tmp_path / JOURNAL).write_bytes(b'{"op_c')
    journal = JournalFile(tmp_path / JOURNAL)
    journal.append_logs([{"n": 7}])
    assert numbers(journal) == [7]


def test_a_damaged_journal_is_told_and_a_grid_goes_on_from_its_run_folders(tmp_path: Path):
    stage = grid(2)
    store = StudyStore(stage, None, tmp_path)
    store.prepare()
    claim = store.claim(ME)
    assert claim is not None
    store.finish(claim, "COMPLETE", [0.5])
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{half a line\n", *lines[3:]]))
    with pytest.raises(IveditError, match="is damaged") as error:
        StudyStore(stage, None, tmp_path, patience=0.1).slots()
    assert len(str(error.value).splitlines()) == 1
    path.unlink()
    again = StudyStore(stage, None, tmp_path)
    again.prepare()
    said = again.reconcile(lambda folder: Outcome("COMPLETE", (0.5,)) if folder == claim.run_folder else None)
    assert said == ["final-0000-a0-seed0: COMPLETE, which its worker did not live to tell"]
    assert [(slot.state, slot.values) for slot in again.slots()] == [("COMPLETE", (0.5,)), ("WAITING", None)]


def test_a_search_whose_journal_is_gone_is_not_taken_over_with_other_parameters(tmp_path: Path):
    stage = search(1)
    store = StudyStore(stage, None, tmp_path)
    store.prepare()
    claim = store.claim(ME)
    assert claim is not None
    claim.run_folder.mkdir(parents=True)
    (claim.run_folder / "config.yaml").write_text("seed: 0\n")
    assert store.reconcile(lambda folder: None) == []
    (tmp_path / JOURNAL).unlink()
    again = StudyStore(stage, None, tmp_path)
    again.prepare()
    with pytest.raises(ConfigError) as error:
        again.reconcile(lambda folder: None)
    assert "restore the storage" in str(error.value)
    assert str(claim.run_folder) in str(error.value)


def test_a_full_disk_writes_nothing_and_says_so(tmp_path: Path):
    """A limit on the size of files stands for the disk: the kernel cuts the write short in the same way."""
    stage = search(3)
    store = StudyStore(stage, None, tmp_path)
    store.prepare()
    claim = store.claim(ME)
    assert claim is not None
    path = tmp_path / JOURNAL
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(IveditError) as error:
            store.finish(claim, "COMPLETE", [1.0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert path.read_bytes() == before
    assert store.finish(claim, "COMPLETE", [1.0])
    assert StudyStore(stage, None, tmp_path).results()[0].values == (1.0,)


def test_a_worker_killed_while_it_holds_the_journal_stops_nobody(tmp_path: Path):
    """Optuna's own lock would stand for 30 seconds."""
    path = tmp_path / JOURNAL
    script = (
        "import time; from pathlib import Path; from ivedit.sweeping.storage import JournalFile\n"
        f"journal = JournalFile(Path({str(path)!r})); journal._lock_file.acquire()\n"
        "print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=with_package())
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    written = threading.Event()

    def write() -> None:
        JournalFile(path).append_logs([{"n": 1}])
        written.set()

    threading.Thread(target=write, daemon=True).start()
    assert not written.wait(0.3)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert written.wait(300)
    assert numbers(JournalFile(path)) == [1]


def test_a_journal_in_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IveditError) as error:
        StudyStore(grid(2), None, tmp_path / "file" / "sweep")
    assert len(str(error.value).splitlines()) == 1
    assert str(tmp_path / "file") in str(error.value)


# -- sqlite ---------------------------------------------------------------------------------------------


def test_two_processes_never_take_the_same_trial_from_sqlite(tmp_path: Path):
    """With Optuna's own way to open it, four processes took 40 waiting trials about 60 times."""
    url = f"sqlite:///{tmp_path}/race.db"
    storage = open_storage(url, tmp_path)
    number = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "race")
    for _ in range(30):
        storage.create_new_trial(number, optuna.trial.create_trial(state=TrialState.WAITING))
    barrier, popped = PROCESSES.Barrier(3), PROCESSES.Queue()
    workers = [PROCESSES.Process(target=pop_all, args=(url, barrier, popped)) for _ in range(3)]
    for worker in workers:
        worker.start()
    taken: Counter[int] = Counter()
    left = len(workers)
    while left:
        got = popped.get(timeout=300)
        left -= got is None
        if got is not None:
            taken[got] += 1
    for worker in workers:
        worker.join()
    assert taken == Counter(range(30))


def test_the_benchmarks_page_says_what_its_record_says():
    record = json.loads((ROOT / "benchmarks" / "records" / "storage_claims.json").read_text())
    page = (ROOT / "benchmarks" / "README.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in page if line.startswith("|")]
    names = {"journal file": "journal", "sqlite": "sqlite", "PostgreSQL": "postgresql"}
    names |= {"gRPC proxy, sqlite behind": "grpc"}
    table = {names[row[0].strip()]: [int(cell) for cell in row[1:]] for row in rows if row[0].strip() in names}
    assert set(table) == set(names.values())
    for kind, numbers in table.items():
        plain, ours = record["arms"][f"{kind}, optuna"], record["arms"][f"{kind}, ivedit"]
        assert numbers == [plain["taken"], plain["by_more_than_one"], ours["taken"], ours["by_more_than_one"]]
        assert (ours["taken"], ours["by_more_than_one"], ours["by_none"]) == (ours["trials"], 0, 0)


def test_a_file_that_is_no_database_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "notes.db").write_text("these are my notes, not a database at all" * 10)
    with pytest.raises(IveditError) as error:
        open_storage(f"sqlite:///{tmp_path}/notes.db", tmp_path)
    assert "notes.db" in str(error.value)
    assert "not a database" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_tables_of_another_optuna_are_refused(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/old.db"
    open_storage(url, tmp_path)
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("update alembic_version set version_num = 'v0.9.0.a'")
    with pytest.raises(IveditError, match="optuna storage upgrade"):
        open_storage(url, tmp_path)


# -- servers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "postgres"])
def test_an_unreachable_server_is_told_in_one_line_without_its_password(tmp_path: Path, scheme: str):
    pytest.importorskip("psycopg")
    with pytest.raises(IveditError) as error:
        StudyStore(grid(2), f"{scheme}://ann:secret@127.0.0.1:{free_port()}/sweeps", tmp_path)
    assert "secret" not in str(error.value)
    assert "ann:***@127.0.0.1" in str(error.value)
    assert "refused" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_wrong_password_is_told_without_any_password(tmp_path: Path, postgres: Postgres):
    url = postgres.database()
    with pytest.raises(IveditError) as error:
        open_storage(url.replace(postgres.password, "wrongsecret"), tmp_path)
    assert "password authentication failed" in str(error.value)
    assert "wrongsecret" not in str(error.value)


def test_a_proxy_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("grpc")
    monkeypatch.setattr("ivedit.sweeping.storage.CONNECT_SECONDS", 1)
    with pytest.raises(IveditError) as error:
        open_storage(f"grpc://127.0.0.1:{free_port()}", tmp_path)
    assert "cannot reach" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_server_that_answers_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A listening port behind which nobody speaks: the connection is made, and then nothing."""
    pytest.importorskip("psycopg")
    monkeypatch.setattr("ivedit.sweeping.storage.CONNECT_SECONDS", 2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(IveditError, match="timeout"):
            open_storage(f"postgresql://ann@127.0.0.1:{deaf.getsockname()[1]}/sweeps", tmp_path)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://ann:secret@host/db", "postgresql://"),
        ("study", ".journal"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("grpc://host", "HOST:PORT"),
        ("grpc://host:port", "HOST:PORT"),
        ("grpc://[host:1", "HOST:PORT"),
        ("redis://host", "grpc://HOST:PORT"),
        ("mysql://host/db.journal", "grpc://HOST:PORT"),
    ],
)
def test_an_address_that_is_no_storage_is_refused_with_what_would_be(tmp_path: Path, url: str, says: str):
    with pytest.raises(ConfigError) as error:
        open_storage(url, tmp_path)
    assert says in str(error.value)
    assert "secret" not in str(error.value)


def test_the_proxy_refuses_a_journal(tmp_path: Path):
    with pytest.raises(ConfigError, match="journal"):
        serve(f"{tmp_path}/study.journal")


def test_a_storage_is_shown_without_its_password(tmp_path: Path):
    assert shown("postgresql://ann:secret@host/db", tmp_path) == "postgresql://ann:***@host/db"
    assert shown(None, tmp_path) == str(tmp_path / JOURNAL)


def test_a_server_that_restarts_loses_no_slot(tmp_path: Path):
    """While it is away a renewal waits, an end is told again until it is heard, and the lease is not given up."""
    if reason := why_not():
        pytest.skip(reason)
    with running() as server:
        stage = grid(2)
        store = StudyStore(stage, server.database(), tmp_path, lease_seconds=30)
        store.prepare()
        claim = store.claim(ME)
        assert claim is not None
        server.stop()
        assert store.renew(claim)  # not lost: nobody can take it either
        impatient = StudyStore.__new__(StudyStore)
        impatient.__dict__.update(store.__dict__, patience=0.2)
        with pytest.raises(IveditError) as error:
            impatient.slots()
        assert server.password not in str(error.value)
        assert len(str(error.value).splitlines()) == 1
        back = threading.Timer(0.5, server.start)
        back.start()
        assert store.finish(claim, "COMPLETE", [0.5])
        back.join()
        assert store.results()[0].values == (0.5,)
        claim.renewed -= 31  # its length has passed without a renewal
        server.stop()
        assert not store.renew(claim)
        server.start()


def test_several_machines_make_the_tables_at_the_same_moment(tmp_path: Path, postgres: Postgres):
    """A new database, four processes that start as one."""
    for url in (f"sqlite:///{tmp_path}/new.db", postgres.database()):
        barrier, said = PROCESSES.Barrier(4), PROCESSES.Queue()
        workers = [PROCESSES.Process(target=first_start, args=(url, tmp_path, barrier, said)) for _ in range(4)]
        for worker in workers:
            worker.start()
        assert [said.get(timeout=300) for _ in workers] == [4] * 4
        for worker in workers:
            worker.join()
        store = StudyStore(grid(4, sweep="first"), url, tmp_path)
        assert [slot.state for slot in store.slots()] == ["WAITING"] * 4
