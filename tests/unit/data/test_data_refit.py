"""Train and validation together: what training then sees, and what stays as it was."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.examples import Examples
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData

INTER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"


def write_inter(folder: Path, **rows: list[tuple[str, str, str]]) -> Path:
    for name, found in rows.items():
        with gzip.open(folder / f"x.{name}.inter.gz", "wt") as file:
            file.write(INTER + "".join("\t".join(row) + "\n" for row in found))
    return folder


def sequences(prepared: PreparedData) -> list[str]:
    """Items of the training events, by segment."""
    ids, seen_E = prepared.items["item_id"].to_list(), prepared.train_events()
    found: dict[int, str] = {}
    for segment, item in zip(prepared.segment_E[seen_E], prepared.item_E[seen_E], strict=True):
        found[int(segment)] = found.get(int(segment), "") + ids[item]
    return list(found.values())


def pairs(prepared: PreparedData, examples: Examples) -> list[tuple[str, str]]:
    """Histories and targets."""
    ids = prepared.items["item_id"].to_list()
    bounds = zip(examples.history_start, examples.history_end, examples.target_start, examples.target_end, strict=True)
    return [
        ("".join(ids[item] for item in prepared.item_E[a:b]), "".join(ids[item] for item in prepared.item_E[c:d]))
        for a, b, c, d in bounds
    ]


def test_given_rows_continue_their_users_sequences(tmp_path):
    folder = write_inter(
        tmp_path,
        train=[("u", "a", "b"), ("u", "a b", "c"), ("v", "a", "c")],
        # u goes on twice; w is new, then goes on; v's history fits nothing that is known of v.
        valid=[("u", "a b c", "d"), ("w", "d", "a"), ("u", "a b c d", "a"), ("w", "d a", "b"), ("v", "b b", "d")],
        test=[("u", "a b c d a", "b"), ("w", "d a b", "c")],
    )
    prepared = prepare(PrepareConfig(format="industrial"), folder, tmp_path / "out")
    refit = prepared.refit()
    assert sequences(prepared) == ["abc", "ac"]
    assert sequences(refit) == ["abcda", "ac", "dab", "bbd"]
    assert len(refit.examples("valid")) == 0
    assert pairs(refit, refit.examples("test")) == pairs(prepared, prepared.examples("test"))
    added = pairs(refit, refit.examples("train"))[len(prepared.examples("train")) :]
    assert added == [("abc", "d"), ("d", "a"), ("abcd", "a"), ("da", "b"), ("bb", "d")]
    assert pairs(refit, refit.examples("train"))[: len(prepared.examples("train"))] == pairs(
        prepared, prepared.examples("train")
    )
    assert (np.diff(refit.session_E) >= 0).all()
    assert (np.diff(refit.segment_E) >= 0).all()
    assert set(np.diff(refit.segment_E)) <= {0, 1}
    assert len(set(zip(refit.segment_E, refit.session_E, strict=True))) == 6, "one session a segment without times"


@pytest.mark.parametrize("split", ["time", "leave_one_out"])
def test_other_splits_keep_every_event_in_its_place(tmp_path, split):
    rows = [
        f"{user},{'abcdefg'[(user + step) % 7]},{1000 * user + 100_000 * step}"
        for user in range(9)
        for step in range(6)
    ]
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    config = PrepareConfig(split=split, target_kind="next_items", slate_size=2, min_history_length=0)
    prepared = prepare(config, tmp_path / "events.csv", tmp_path / "out")
    refit = prepared.refit()
    assert (refit.item_E == prepared.item_E).all()
    assert (refit.segment_E == prepared.segment_E).all()
    assert (refit.session_E == prepared.session_E).all()
    assert (refit.train_events() == (prepared.part_E < 2)).all()
    assert prepared.train_events().sum() < refit.train_events().sum() < prepared.num_events
    both = [*pairs(prepared, prepared.examples("train")), *pairs(prepared, prepared.examples("valid"))]
    assert pairs(refit, refit.examples("train")) == both
    assert pairs(refit, refit.examples("test")) == pairs(prepared, prepared.examples("test"))


def test_it_is_saved_and_loaded_like_any_other(tmp_path):
    folder = write_inter(tmp_path, train=[("u", "a", "b")], valid=[("u", "a b", "c")], test=[("u", "a b c", "a")])
    refit = prepare(PrepareConfig(format="industrial"), folder, tmp_path / "out").refit()
    refit.save(tmp_path / "refit")
    loaded = PreparedData.load(tmp_path / "refit")
    assert loaded.meta["refit"] is True
    assert sequences(loaded) == ["abc"]
    assert len(loaded.examples("valid")) == 0
    assert pairs(loaded, loaded.refit().examples("test")) == [("abc", "a")]


def test_no_event_of_the_real_split_counts_twice(shared_data, tmp_path):
    prepared = prepare(PrepareConfig(format="industrial"), shared_data("industrial"), tmp_path)
    refit = prepared.refit()
    # Every validation target is new to training; besides it only what its user had before the first row of his.
    new_users = len(
        set(prepared.user_id_E.gather(prepared.examples("valid").target_start))
        - set(prepared.user_id_E.filter(prepared.train_events()))
    )
    num_new = int(refit.train_events().sum() - prepared.train_events().sum())
    assert 4532 + new_users <= num_new <= 4532 + new_users + 40
    test = prepared.examples("test")
    assert pairs(refit, refit.examples("test"))[::50] == pairs(prepared, test)[::50]
