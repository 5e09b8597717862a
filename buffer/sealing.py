"""The door of the sealing child: `python -m buffer.sealing`, served by buffer.segment. It steps back before it loads anything.

Loading pyarrow is 0.4 s of CPU, during which a child of equal rank makes commits wait. On one processor, 1,000 readings a commit, the 99th of
a hundred took 6.5 ms beside a child that stepped back when it had loaded, 3.8 ms beside this one, 4.4 ms beside none. SCHED_IDLE gained no
more, and starves on a machine that is busy for long.
"""

from __future__ import annotations

import os
from typing import Final

NICE: Final = 19

if __name__ == "__main__":
    os.nice(NICE)
    from buffer.segment import main

    main()
