"""Lives by hand, seeds -1, -2... of the enumeration: what chance meets seldom. Each says what it is for; tests.mutants plants the defect."""

from __future__ import annotations

from tests.crash.plant import PAGE, RESERVE, Script

JOURNAL = RESERVE + 6 * PAGE
DIRECTED = (
    # a gap opened in a journal that is evicted before any `last` file holds it
    Script(3 * JOURNAL, JOURNAL, (("live", 2), ("roll", 1), ("gap", 2), *(("roll", 1), ("live", 1)) * 4, ("idle", 1))),
    # syncs that fail though every byte arrived: two copies of one block, then sealed
    Script(10**9, JOURNAL, (*(("sync_fails", 1), ("live", 2)) * 2, ("live", 1), ("roll", 1), ("live", 1)), reaches=1),
    # syncs that fail and leave nothing: blocks that only the cache shows
    Script(10**9, JOURNAL, (*(("sync_fails", 1), ("live", 2)) * 2, ("live", 1), ("roll", 1), ("live", 1)), reaches=0),
    # journals recycled within a generation: old frames stand behind new ones
    Script(
        10**9, JOURNAL,
        (*(("live", 2),) * 5, ("roll", 1), ("live", 2), *(("seal", 1),) * 3, ("room", 2), ("roll", 1), ("live", 2), ("idle", 1), ("live", 2)),
    ),  # fmt: skip
    # two tag tables in turn on a disk that is full: the one in use next was in use long ago
    Script(
        10**9, JOURNAL, (("table", 1), ("live", 2), ("table", 1), ("live", 2), *(("roll", 1), ("live", 2)) * 2, ("table", 1), ("live", 2), ("roll", 1), ("live", 2)),
        capacity=36 * PAGE,
    ),  # fmt: skip
    # a segment is published and its `last` file is not: what the journal says of the source stands nowhere else
    Script(10**9, JOURNAL, (("live", 2), ("gap", 2), ("roll", 1), ("idle", 1), ("seal", 1), ("live", 1), ("idle", 1))),
    # a commit of two blocks, before and after a gap opened, whose last sync fails though every byte arrived: both stand twice, in turn. The
    # first says nothing of the tags of the second: what was newest before the gap is not what is newest when the copies come
    Script(10**9, 3 * JOURNAL, (("live", 2), ("live", 3), ("sync_fails", 2), ("gap", 1), ("live", 1), ("idle", 1)), reaches=1),
    # journals are sealed and no `last` file can be written: what they say of the source stands nowhere else, however old they are
    Script(
        10**9, JOURNAL,
        (("live", 2), ("roll", 1), ("gap", 2), *(("roll", 1), ("live", 1)) * 2, ("no_last", 1), *(("seal", 1),) * 3, ("room", 2), ("no_last", 0), ("idle", 1)),
    ),  # fmt: skip
    # a gap opened while one of an earlier generation is open
    Script(10**9, JOURNAL, (("live", 2), ("gap", 1), ("restart", 1), ("live", 1), ("gap", 2), ("fill", 1), ("restart", 1), ("fill", 1), ("live", 1))),
    # the same across a start, which cannot write `last` either
    Script(
        10**9, JOURNAL,
        (("live", 2), ("roll", 1), ("gap", 2), ("roll", 1), ("idle", 1), ("no_last", 1), ("seal", 1), ("seal", 1), ("restart", 1), ("room", 2), ("idle", 1), ("no_last", 0)),
    ),  # fmt: skip
    # the disk refuses the journal that a commit needs, once: the commit is tried again, and is the same
    Script(10**9, JOURNAL, (("live", 2), ("roll", 1), ("sync_fails", 1), ("gap", 1), ("live", 1), ("idle", 1))),
    # segments evicted one by one while their journals must stay, for no `last` holds them; what those say is of an older tag table
    Script(
        4 * 3 * JOURNAL + 10 * PAGE + 1385, 3 * JOURNAL,  # four journals, the reserve, and one segment is one too many
        (
            ("live", 2), ("roll", 1), ("live", 2), ("table", 1), ("live", 3), ("roll", 1), ("live", 2), ("no_last", 1),
            *(("seal", 1), ("room", 1)) * 3, ("idle", 1), ("no_last", 0), ("idle", 1),
        ),
    ),  # fmt: skip
    # a journal sealed in two parts, of which the disk refuses the second: what is left of it is sealed later
    Script(10**9, 3 * JOURNAL, (*(("live", 1),) * 4, ("roll", 1), ("idle", 1), ("sync_fails", 5), ("seal", 1), ("idle", 1), ("seal", 1), ("idle", 1))),
    # a tag table goes with its last readings, and the power fails before any of that is durable: what comes back needs the table
    Script(
        4 * JOURNAL, JOURNAL,
        (("table", 1), ("live", 3), ("table", 1), ("live", 3), ("seal", 1), *(("roll", 1), ("idle", 1)) * 3),
    ),  # fmt: skip
)
