"""The planted defects: name, where, what becomes of which text, and which harness must turn red. Add yours here.

Harnesses: `crash` (tests.crash.states), `rot` (tests.crash.rot), `whole [first seed]` (tests.simulation.whole), or a pytest node id below tests/.
"""

from __future__ import annotations

from tests.mutants.plant import Mutant

M = Mutant

CRASH = (
    M("acknowledge before the sync", "buffer.journals", "        writer.append(built[-1].frame)\n        writer.sync()\n", "        writer.append(built[-1].frame)\n", "crash"),
    M("last block of a commit written before the others are synced", "buffer.journals", "        if len(built) > 1:\n            writer.sync()\n", "", "crash"),
    M("no directory sync after a recycled journal is renamed", "buffer.journal", '            storage.fsync_dir(path.rpartition("/")[0])\n', "", "crash"),
    M("no directory sync after publish", "buffer.storage", "    if durable:\n        _sync_directory(system, directory)\n", "", "crash"),
    M("no sync before the rename of a published file", "buffer.storage", "            if durable:\n                system.fsync(fd)\n", "", "crash"),
    M("the same file synced again after a failed sync", "buffer.ring", "            self._abandon(fault)\n            self._again(built, now)\n            try:\n                self._journals.write(built)", "            try:\n                self._storage._poisoned.clear()\n                self._journals.active.writer.sync()", "crash"),
    M("a failed block is cut again under the next number", "buffer.ring", "            self._abandon(fault)\n            self._again(built, now)\n", "            self._abandon(fault)\n            built = self._unsynced = self._chain.build(cut(group([], self._gaps)), self._active_table, 0, lambda b, e, o: self._record(now, b, e, o))\n            self._again(built, now)\n", "crash"),
    M("evict before the new low is durable", "buffer.ring", "            self.commit(now)\n            gone += self._room.drop_below(self._room.low)\n", "            gone += self._room.drop_below(self._room.low)\n            self.commit(now)\n", "crash"),
    M("reader ignores `durable`", "buffer.reader", "        if name.serial > mark.serial:\n            return\n        size = mark.end_offset if name.serial == mark.serial else self._storage.size(name.path) or 0\n", "        mark = DurableMark(mark.generation, 2**60, 2**60, 2**60, 2**60)\n        size = self._storage.size(name.path) or 0\n", "crash"),
    M("`durable` written before the sync", "buffer.journals", "        writer.append(built[-1].frame)\n        writer.sync()\n", "        writer.append(built[-1].frame)\n        last = built[-1].frame.manifest\n        self._advance(DurableMark(self.generation, self.active.facts.name.serial, writer.end, last.end_seq, last.first_block + 1))\n        writer.sync()\n", "crash"),
    M("recovery through the cache", "buffer.journal", "        return storage.read_direct(path, 0, size) or b\"\"\n    except", "        return storage.read(path, 0, size) or b\"\"\n    except", "crash"),
    M("recovery believes names that were never synced", "buffer.recovery", "                self._storage.fsync_dir(directory)\n", "                pass\n", "crash"),
    M("recovery does not sync what it believes", "buffer.recovery", "                self._storage.sync_file(path)\n", "                pass\n", "crash"),
    M(".cose before .parquet", "buffer.adopt", "    storage.adopt(part.path, name.parquet)\n    storage.publish(name.cose, [cose_file])\n", "    storage.publish(name.cose, [cose_file])\n    storage.adopt(part.path, name.parquet)\n", "crash"),
    M("journal given back before its segment is published", "buffer.adopt", "    storage.publish(name.cose, [cose_file])\n", "", "crash"),
    M("tail of a commit that never ended is believed", "buffer.recovery", "        while blocks and blocks[-1][0].more and blocks[-1][0].last_block >= proven:\n            blocks.pop()\n", "", "crash"),
    M("positions not recovered", "buffer.last", "            self.positions.update(manifest.positions)\n", "            pass\n", "crash"),
    M("position a commit too early", "buffer.cut", "            last.positions[one.source or 0] = one.position\n", "            (out[0] if out else last).positions[one.source or 0] = one.position\n", "crash"),
    M("gap opened after the first live commit", "buffer.cut", "            last = Group([], gaps.open, fill)\n", "            last = Group([], gaps.open if change is None or history else gaps.open[:-1], fill)\n", "crash"),
    M("progress of a fill not recovered", "buffer.last", "            self.gaps[fill[0]].progress = fill[1]\n", "            pass\n", "crash"),
    M("history counts as live", "buffer.last", "        if fill is None:\n            if columns", "        if True:\n            if columns", "crash"),
    M("first live reading after a gap not kept", "buffer.last", "        self._first_live(columns, real)\n", "", "crash"),
    M("a generation without its ordinal", "buffer.ring", "        self.generation = (found.ordinal + 1) << 32 | nonce\n", "        self.generation = 1 << 32 | 1\n", "crash"),
    M("predecessor forgets the end that `durable` proves", "buffer.recovery", "            self.out.ends[generation] = max(end, self.out.ends.get(generation, 0))\n", "            self.out.ends[generation] = end\n", "crash"),
    M("two copies of one block are two blocks", "buffer.recovery", "            if manifest.first_block <= self._newest_block.get(name.generation, -1):\n                continue  # a copy", "            if False:\n                continue  # a copy", "crash"),
    M("what lies below low comes back", "buffer.ring", "        self._room.drop_below(found.low or (0, 0))\n", "", "crash"),
    M("eviction looks at the wall clock", "buffer.ring", "        over = self._room.over_bytes()\n        if over > 0 and", "        over = self._room.over_bytes()\n        if (over > 0 or now.wall_ns < 0) and", "crash"),
    M("salt of the earlier use accepted", "buffer.journal", "        if header.salt != salt:\n            raise CorruptError(\"frame of an earlier use of this file (salt)\")\n", "", "crash"),
    M("a journal header of another name is believed", "buffer.journal", "    return header.salt if (header.generation, header.serial) == (generation, serial) else None", "    return header.salt if header else None", "crash"),
    M("the parent of a directory is not synced", "buffer.storage", "        system.mkdir(path, mode)\n    _sync_directory(system, parent)\n", "        system.mkdir(path, mode)\n", "crash"),
)

ROT = (
    M("no look-ahead for later headers", "buffer.journal", "            resume = look_ahead(read, offset + PAGE, salt, number, size_bytes)\n", "            resume = None\n", "rot"),
    M("CRC and digest unchecked", "buffer.frame", "    if zlib.crc32(payload, zlib.crc32(cose)) != header.body_crc:\n", "    if False:\n", "rot"),
    M("lost shrinks", "buffer.recovery", "        out.lost = [*known, *new]\n", "        out.lost = [*new]\n", "rot"),
    M("readers drop what a rotten end follows", "buffer.reader", "        while held and (end is None or not", "        while held and (True or not", "rot"),
    M("losses are not named", "buffer.recovery", "        out.lost = [*known, *new]\n", "        out.lost = [*known]\n", "rot"),
    M("an acknowledged tail that rotted is a torn tail", "buffer.recovery", "        self._end(self._mark.generation, self._mark.end_seq)\n", "", "rot"),
)

WHOLE = (
    M("the writer acknowledges before it commits", "gateway.collect.writer", "                await self._runtime.offload(partial(self._append, one.batch))\n", "                await self._runtime.offload(partial(self._append, one.batch))\n                one.done.set_result(None)\n", "whole"),
    M("the writer drops the position", "gateway.collect.writer", "self._table.source_number(batch.source), batch.position, batch.gap)", "self._table.source_number(batch.source), None, batch.gap)", "whole"),
    M("the cursor moves before the receipt", "gateway.upload.machine", "        self.counters.failures += 1\n        self._end(job)\n", "        self.counters.failures += 1\n        self._end(job)\n        if job.kind != FrameKind.OBJECT:\n            from gateway.wire.receipt import Ends\n            self.memory.cursor.receipted(job.generation, job.first, request.last, Ends(0, 0))\n", "whole"),
    M("what is new is not computed", "gateway.receive.accept", "    new = tuple(seqs.holes(unit.first_seq, last_seq)) if unit.count else ()\n", "    new = ((unit.first_seq, last_seq),) if unit.count else ()\n", "whole"),
    M("retries go by the wall clock", "gateway.upload.service", "        return Now(self._runtime.monotonic_ns(), self._runtime.wall_ns())", "        return Now(self._runtime.wall_ns(), self._runtime.wall_ns())", "whole"),
    M("no gap is opened", "buffer.cut", '        if change.step == "open":\n', '        if change.step == "opened":\n', "whole"),
    M("two gaps in a row owe the same history", "buffer.last", "                self._hand_over(gap.source)\n", "", "whole 103"),
    M("what a fill has paid is forgotten", "buffer.last", "            self.gaps[fill[0]].progress = fill[1]\n", "            pass\n", "whole"),
    M("a restored receiver is not offered again", "gateway.upload.machine", "            again = self.memory.cursor.forget_above(receipt.since)\n", "            again = 0\n", "whole"),
    M("a refused commit is acknowledged", "gateway.collect.writer", "                await self._runtime.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])\n", "                return\n", "whole"),
)

MUTANTS = (*CRASH, *ROT, *WHOLE)
