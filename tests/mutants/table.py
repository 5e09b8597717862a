"""The planted defects: name, where, what becomes of which text, and which harness must turn red. Add yours here.

Harnesses: `crash` (tests.crash.states: many lives), `crash -N` (one life by hand, tests.crash.directed), `rot` (tests.crash.rot),
`whole [first seed]` (tests.simulation.whole),
or what pytest is to run. EQUIVALENT names changes that look like defects and are none, and why: nothing can turn red for them.
"""

from __future__ import annotations

from tests.mutants.plant import Mutant

M = Mutant
LIVES = "tests/crash/test_lives.py"

CRASH = (
    M("acknowledge before the sync", "buffer.journals", "        writer.append(built[-1].frame)\n        writer.sync()\n", "        writer.append(built[-1].frame)\n", "crash"),
    M("last block of a commit written before the others are synced", "buffer.journals", "        if len(built) > 1:\n            writer.sync()\n", "", LIVES),
    M("no directory sync after a recycled journal is renamed", "buffer.journal", '            storage.fsync_dir(path.rpartition("/")[0])\n', "", "crash"),
    M("no directory sync after publish", "buffer.storage", "    if durable and sync_name:\n        _sync_directory(system, directory)\n", "", "crash"),
    M("no sync before the rename of a published file", "buffer.storage", "            if durable:\n                system.fsync(fd)\n", "", "crash"),
    M("the same file synced again after a failed sync", "buffer.ring", "            self._abandon(fault)\n            self._again(built, now)\n            try:\n                self._journals.write(built)", "            try:\n                self._storage._poisoned.clear()\n                self._journals.active.writer.poisoned = False\n                self._journals.active.writer.sync()", "crash -3"),
    M("a failed block is cut again under the next number", "buffer.ring", "            self._abandon(fault)\n            self._again(built, now)\n", "            self._abandon(fault)\n            from buffer.cut import Cut\n            cuts = [Cut(b.columns, b.frame.payload, b.frame.manifest.state.open_gaps, b.frame.manifest.fill, b.frame.manifest.positions, b.frame.manifest.arrival_ns) for b in built]\n            built = self._unsynced = self._chain.build(cuts, self._active_table, 0, lambda b, e, o: self._record(now, b, e, o))\n            self._again(built, now)\n", "crash -2"),
    M("evict before the new low is durable", "buffer.ring", "            self.commit(now)\n            gone += self._room.drop_below(self._room.low)\n", "            gone += self._room.drop_below(self._room.low)\n            self.commit(now)\n", "crash"),
    M("reader ignores `durable`", "buffer.reader", "        if name.serial > mark.serial:\n            return\n        size = mark.end_offset if name.serial == mark.serial else self._storage.size(name.path) or 0\n", "        mark = DurableMark(mark.generation, 2**60, 2**60, 2**60, 2**60)\n        size = self._storage.size(name.path) or 0\n", "crash"),
    M("`durable` written before the sync", "buffer.journals", "        writer.append(built[-1].frame)\n        writer.sync()\n", "        writer.append(built[-1].frame)\n        last = built[-1].frame.manifest\n        self._advance(DurableMark(self.generation, self.active.facts.name.serial, writer.end, last.end_seq, last.first_block + 1))\n        writer.sync()\n", "crash"),
    M("recovery believes names that were never synced", "buffer.recovery", "                self._storage.fsync_dir(directory)\n", "                pass\n", LIVES),
    M("recovery does not sync what it believes", "buffer.recovery", "                self._storage.sync_file(path)\n", "                pass\n", "crash"),
    M(".cose before .parquet", "buffer.adopt", "    storage.adopt(part.path, name.parquet)\n    storage.publish(name.cose, [cose_file])\n", "    storage.publish(name.cose, [cose_file])\n    storage.adopt(part.path, name.parquet)\n", "crash -6"),
    M("journal given back before its segment is published", "buffer.adopt", "    storage.publish(name.cose, [cose_file])\n", "", "crash"),
    M("tail of a commit that never ended is believed", "buffer.recovery", "        while tail and not self._was_acknowledged(tail[-1][0]):\n            tail.pop()\n", "", "crash"),
    M("positions not recovered", "buffer.last", "            self.positions.update(manifest.positions)\n", "            pass\n", "crash"),
    M("position a block too early", "buffer.cut", "            last.positions[one.source or 0] = one.position\n", "            (out[0] if out else last).positions[one.source or 0] = one.position\n", "crash -7"),
    M("gap opened after the first live commit", "buffer.cut", "            last = Group([], gaps.open, fill)\n", "            last = Group([], gaps.open if change is None or history else gaps.open[:-1], fill)\n", "crash"),
    M("progress of a fill not recovered", "buffer.last", "            self.gaps[fill[0]].progress = fill[1]\n", "            pass\n", "crash"),
    M("history counts as live", "buffer.last", "        if fill is None:\n            if columns", "        if True:\n            if columns", "crash"),
    M("first live reading after a gap not kept", "buffer.last", "            if self.gaps:\n                self._first_live(part, own)\n", "", "crash"),
    M("a generation without its ordinal", "buffer.ring", "        self.generation = (found.ordinal + 1) << 32 | nonce\n", "        self.generation = 1 << 32 | 1\n", "crash"),
    M("eviction looks at the wall clock", "buffer.ring", "        over = self._room.over_bytes()\n        if over > 0 and", "        over = self._room.over_bytes()\n        if (over > 0 or now.wall_ns < 0) and", "crash"),
    M("low is not in the record", "buffer.ring", "end, self._room.low, self._room.lost,", "end, (0, 0), self._room.lost,", "crash -1"),
    M("journal given back though `last` does not hold its positions", "buffer.room", "        if place >= self.covered:\n            self.publish_last()\n        return place < self.covered\n", "        return True\n", "crash -1"),
    M("the journal with the newest record is given back", "buffer.journals", "        return max((j for j in self.closed if j.last_block >= 0), key=lambda j: (j.name.generation, j.last_block), default=None)\n", "        return None\n", "crash"),
    M("recovery through the cache", "buffer.journal", "            return self._storage.read_direct(self._path, start, size) or b\"\"\n", "            return self._storage.read(self._path, start, size) or b\"\"\n", "crash -3"),
    M("two copies of one block are two blocks", "buffer.recovery", "            if manifest.first_block <= self._newest_block.get(name.generation, -1):\n                continue  # a copy", "            if False:\n                continue  # a copy", "crash -7"),
    M("frames of an earlier use accepted (salt and order)", "buffer.journal", ("        if header.salt != salt:\n            raise CorruptError(\"frame of an earlier use of this file (salt)\")\n", "            if frame.manifest.first_block <= number:\n                raise CorruptError(\"frame number does not rise\", source=\"journal\", offset=offset)\n"), ("", ""), "crash -4"),
    M("torn tail accepted", "buffer.frame", ("    if zlib.crc32(payload, zlib.crc32(cose)) != header.body_crc:\n", "    if payload_digest(payload) != manifest.payload_sha256:\n"), ("    if False:\n", "    if False:\n"), "crash -1"),
    M("a journal is done though no `last` holds it", "buffer.recovery", "        if end <= name.first_seq or (name.generation, end) >= self._last_place:\n", "        if end <= name.first_seq:\n", "crash -8"),
    M("half a segment is believed", "buffer.recovery", "            if len(endings) == 2:  #", "            if endings:  #", "crash"),
    M("a gap has the name of one of an earlier generation", "buffer.ring", "if found.state else (), (found.ordinal + 1) << 32)\n", "if found.state else (), 1)\n", "crash -9"),
    M("open gaps not recovered", "buffer.ring", "tuple(sorted(found.state.open_gaps)) if found.state else ()", "()", "crash"),
    M("a generation does not say where its predecessor ended", "buffer.ring", "        self._predecessor = max(found.ends.items(), default=None)\n", "        self._predecessor = None\n", "crash"),
    M("the newest goes first", "buffer.retention", "    return sorted(out, key=lambda unit: unit[0])\n", "    return sorted(out, key=lambda unit: unit[0], reverse=True)\n", LIVES),
    M("no room is kept for the state record, in no journal", "buffer.ring", ("if not self._roll and self._journals.fits(need_bytes + self.options.reserve_bytes)", "        there = self._journals.begin_reserve(self._chain.seq, self._chain.block, now.monotonic_ns)\n"), ("if not self._roll and self._journals.fits(need_bytes)", "        there = False\n"), LIVES),
    M("an eviction does not raise low", "buffer.room", "        self.low, self.lost = account(self.lost, low)\n        return True\n", "        self.lost = account(self.lost, low)[1]\n        return True\n", LIVES),
    M("the parent of a directory is not synced", "buffer.storage", "        system.mkdir(path, mode)\n    _sync_directory(system, parent)\n", "        system.mkdir(path, mode)\n", LIVES),
    M("a journal is given back with what was acknowledged in it", "buffer.journals", "        if active.acked_end == PAGE:\n", "        if True:\n", "crash -3"),
    M("a journal that holds a block alone is done", "buffer.recovery", "        return following is None or held.covers(end, end)  #", "        return True  #", LIVES),
    M("a sealed journal goes though no `last` holds it", "buffer.retention", "if not j.runs and ((j.name.generation, j.last_block) < covered or _never_used(j))]", "if not j.runs]", "crash -8"),
    M("`last` counts before it is written", "buffer.room", "        size = self._holdings.publish_last(self._last, generation, seq, block)\n        self.covered = max(self.covered, (generation, block))\n", "        self.covered = max(self.covered, (generation, block))\n        size = self._holdings.publish_last(self._last, generation, seq, block)\n", "crash -8"),
    M("a start that could not write `last` goes on as if it had", "buffer.ring", "            self._room.publish_last()  # what was read from them outlives them: a crash loop leaves no journal behind\n            self._room.covered", "            self._room.publish_last()  # what was read from them outlives them: a crash loop leaves no journal behind\n        self._room.covered", "crash -10"),
    M("a gap opens again when its commit is tried again", "buffer.ring", "        gaps = replace(self._gaps, dropped=[])\n", "        gaps = self._gaps\n", "crash -11"),
    M("what waits is forgotten where no journal can be made", "buffer.ring", "        cuts = cut(group(self._pending, gaps))\n", "        cuts = cut(group(self._pending, gaps))\n        self._pending = []\n", "crash -11"),
    M("temporary files are left behind", "buffer.recovery", "                if entry.endswith(TEMPORARY_SUFFIX):\n", "                if False:\n", "crash -6"),
    M("a file is unlinked before it is cut", "buffer.journals", "        storage.truncate(path, 0)\n", "", LIVES),
    M("the tag table of a file that is still there goes", "buffer.room", " if place < min(low, newest, *there)]\n", " if place < min(low, newest)]\n", "crash -12"),
    M("a tag table goes before what needs it is gone for good", "buffer.room", "            self._holdings.settle()  #", "            pass  #", "crash -14"),
    M("no `last` file makes room for the next", "buffer.holdings", "            if fault.errno != ENOSPC:\n                raise\n", "            raise\n", LIVES),
    M("a run that was half adopted is sealed again whole", "buffer.ring", "                run.first_block, run.first_seq = part.last_block + 1, part.first_seq + part.count\n", "                pass\n", LIVES),
    M("on a full disk: evict before the new low is durable", "buffer.space", "            commit()\n            room.drop_below(room.low)\n", "            room.drop_below(room.low)\n            commit()\n", "crash -5"),
    M("a journal spans two tag tables", "buffer.ring", "        self._roll = self._roll or digest != self._table\n", "", LIVES),
)

ROT = (
    M("losses are not in the record", "buffer.ring", "end, self._room.low, self._room.lost,", "end, self._room.low, (),", "rot"),
    M("no record says where the generation before its own ended", "buffer.recovery", "        self._end(manifest.generation, manifest.end_seq)\n        if state is not None:\n            if state.predecessor is not None:\n                self._end(*state.predecessor)\n", "        self._end(manifest.generation, manifest.end_seq)\n        if state is not None:\n", "rot"),
    M("signatures are not looked at in a start", "buffer.recovery", "            found.frame.verified(self._verifier)\n", "            pass\n", LIVES),
    M("an acknowledged part of a commit whose end rotted is dropped", "buffer.recovery", " and not self._was_acknowledged(tail[-1][0]):\n", ":\n", "rot"),
    M("it is dropped at the start after that", "buffer.recovery", "        return manifest.count > 0 and (end <= ", "        return False and (end <= ", "rot"),
    M("it is dropped where no `last` could be written", "buffer.recovery", " or end <= self._stated_end(generation))", ")", "rot"),
    M("no look-ahead for later headers", "buffer.journal", "            resume = look_ahead(read, offset + PAGE, salt, number, size_bytes)\n", "            resume = None\n", "rot"),
    M("CRC and digest unchecked", "buffer.frame", "    if zlib.crc32(payload, zlib.crc32(cose)) != header.body_crc:\n", "    if False:\n", "rot"),
    M("lost shrinks", "buffer.recovery", "        out.lost = [*known, *new]\n", "        out.lost = [*new]\n", "rot"),
    M("readers drop what a rotten end follows", "buffer.reader", "        while held and (end is None or not", "        while held and (True or not", "rot"),
    M("losses are not named", "buffer.recovery", "        out.lost = [*known, *new]\n", "        out.lost = [*known]\n", "rot"),
    M("an acknowledged tail that rotted is a torn tail", "buffer.recovery", "        self._end(self._mark.generation, self._mark.end_seq)\n", "", "rot"),
    M("predecessor forgets the end that `durable` proves", "buffer.recovery", "            self.out.ends[generation] = max(end, self.out.ends.get(generation, 0))\n", "            self.out.ends[generation] = end\n", "rot"),
    M("losses are forgotten at a start", "buffer.ring", "account(found.lost, found.low or", "account((), found.low or", "rot"),
    M("CRC of `durable` unchecked", "buffer.layout", "    if len(data) != DURABLE_BYTES or zlib.crc32(data[:60]) != int.from_bytes(data[60:], \"little\"):\n", "    if len(data) != DURABLE_BYTES:\n", "rot"),
    M("digest of `last` unchecked", "buffer.last", "    if len(data) > LAST_BYTES_MAX or hashlib.sha256(data[32:]).digest() != data[:32]:\n", "    if len(data) > LAST_BYTES_MAX:\n", "rot"),
)

LANDING = "tests/model/test_model.py -k landing"
OTHER = (
    M("a tag table that is used again is dropped with its old readings", "buffer.ring", "        self.last.tables[digest] = (self.generation, self._chain.seq)  #", "        pass  #", LIVES),
    M("a poisoned journal is recycled", "buffer.journals", "if pool and room and not journal.poisoned and journal", "if pool and room and journal", LIVES),
    M("eviction though others filled the disk", "buffer.space", "            self.helpless = self._storage.free_bytes() - before < (used - room.used_bytes()) // 2\n", "", LIVES),
    M("a start has no place for the record that must precede an eviction", "buffer.journals", "        if not self.reserve:\n            return False\n", "        if True:\n            return False\n", LIVES),
    M("the sealed file is not what the child checked", "buffer.adopt", " or hashlib.sha256(data).hexdigest() != part.sha256:", ":", "tests/unit/test_sealed_ring.py"),
    M("sealed parts that leave out a block", "buffer.adopt", "    if ends != begins or not chained or any(p.count <= 0 for p in parts):\n", "    if False:\n", "tests/unit/test_sealed_ring.py"),
    M("a second writer is let in", "buffer.storage", "                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "                pass\n", "tests/unit/test_ring.py"),
    M("scrub compares no digest", "buffer.scrub", "            raise CorruptError(\"does not match its digest\")\n", "            pass\n", "tests/unit/test_scrub.py"),
    M("all of a batch is new where a part is held", "gateway.receive.accept", "    new = tuple(seqs.holes(unit.first_seq, last_seq)) if unit.count else ()\n", "    new = ((unit.first_seq, last_seq),) if unit.count else ()\n", LANDING),
    M("a sink does not go back when the receiver was restored", "gateway.deliver.cursor", "                self.following[lane] = min(self.following[lane], since.get(lane, 0))\n", "                pass\n", LANDING),
    M("a sink takes again what it holds", "gateway.deliver.cursor", "        return [hole for first, last in new for hole in held.holes(first, last)]\n", "        return list(new)\n", LANDING),
)

LANDED = "tests/crash/test_landing.py::test_what_was_receipted_after_a_kill_survives_a_power_cut"
RECEIVE = (
    M("a receiver believes the name of an object that was never synced", "gateway.receive.landing", "        storage.fsync_dir(layout.OBJECTS)  #", "        pass  #", LANDED),
    M("receipt before the index is synced", "gateway.receive.landing", "        self._storage.pwrite(self._index, self._index_end, data)\n        self._storage.fdatasync(self._index)\n", "        self._storage.pwrite(self._index, self._index_end, data)\n", LANDED),
    M("receipt before the live frames are synced", "gateway.receive.landing", "            self._storage.fdatasync(self._live)\n", "            pass\n", LANDED),
    M("index before the segments it names", "gateway.receive.landing", "        self._storage.publish_together(group.files)\n        self._append(group.entries)\n", "        self._append(group.entries)\n        self._storage.publish_together(group.files)\n", LANDED),
    M("names of landed segments are not synced", "buffer.storage", "        for directory in sorted({os.path.dirname(path) for path, _ in files}):\n            self.fsync_dir(directory)\n", "", LANDED),
    M("a start believes what the cache shows of the index", "gateway.receive.rebuild", "storage.read_direct(name.path, 0, storage.size(name.path) or 0)", "storage.read(name.path, 0, storage.size(name.path) or 0)", "tests/crash/test_landing.py -k cache"),
    M("a landing goes on after a fault", "gateway.receive.landing", "        self.broken = True  # until everything below is durable\n", "", "tests/crash/test_landing.py -k fault"),
    M("landing numbers that were in use are used again", "gateway.receive.rebuild", "max(ends.live, mark.end_seq), max(ends.backfill, mark.end_block)", "ends.live, ends.backfill", "tests/crash/test_landing.py -k flipped_byte"),
)

WHOLE = (
    M("the writer acknowledges before it commits", "gateway.collect.writer", "                await self._runtime.offload(partial(self._append, one.batch))\n", "                await self._runtime.offload(partial(self._append, one.batch))\n                one.done.set_result(None)\n", "whole 2"),
    M("the writer drops the position", "gateway.collect.writer", "self._table.source_number(batch.source), batch.position, batch.gap)", "self._table.source_number(batch.source), None, batch.gap)", "whole"),
    M("the cursor moves before the receipt", "gateway.upload.machine", "        self.counters.failures += 1\n        self._end(job)\n", "        self.counters.failures += 1\n        self._end(job)\n        if job.kind != FrameKind.OBJECT:\n            from gateway.wire.receipt import Ends\n            self.memory.cursor.receipted(job.generation, job.first, request.last, Ends(0, 0))\n", "whole"),
    M("what is new is not computed", "gateway.receive.accept", "    new = tuple(seqs.holes(unit.first_seq, last_seq)) if unit.count else ()\n", "    new = ((unit.first_seq, last_seq),) if unit.count else ()\n", "whole"),
    M("no gap is opened", "buffer.cut", '        if change.step == "open":\n', '        if change.step == "opened":\n', "whole 2"),
    M("two gaps in a row owe the same history", "buffer.last", "                self._hand_over(gap.source)\n", "", "whole 103"),
    M("what a fill has paid is forgotten", "buffer.last", "            self.gaps[fill[0]].progress = fill[1]\n", "            pass\n", "whole 9"),
    M("a restored receiver is not offered again", "gateway.upload.machine", "            again = self.memory.cursor.forget_above(receipt.since)\n", "            again = 0\n", "whole 3"),
)

MUTANTS = (*CRASH, *ROT, *OTHER, *RECEIVE, *WHOLE)

EQUIVALENT = (
    ("no room is kept for the state record in the open journal", "the reserve journal is its place then; without both it is a defect, and in the table"),
    ("readers look at the end of `durable` in bytes and not at its block", "a block at or above the end block of the mark stands in a journal of a later serial, or in the mark's own behind its end offset: both are left out already"),
    ("what lies below low comes back at a start", "`Ring.make_room` removes what lies below the committed `low` after every commit; until then those readings are read once more, each still itself"),
    ("salt of an earlier use accepted", "an old frame is refused by its generation or by its number, which does not rise; salt and order taken away together are a defect, and in the table"),
    ("a journal header of another name is believed", "a file is recycled only when all in it stands in segments or below `low` and in `last`: its old blocks lie before the place of `last`, or belong to another generation, and change nothing"),
    ("directory not synced after a journal is created", "`JournalWriter.create` syncs it again once the header is written, before anything is committed in it"),
    ("directory not synced after the .parquet is renamed", "the .cose, published next into the same directory, syncs both names; without .cose there is no segment"),
    ("readers read a dead generation through the cache", "what only the cache shows lies beyond the end that the successor states, or is the same block that stands, byte for byte, in the next journal"),
    ("directory not synced after an unlink", "by design: a name that comes back lies below the committed `low`, stands in a segment too, or is half a segment, and a start removes it"),
)
