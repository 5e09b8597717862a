"""The door of the sealing child: `python -m buffer.sealing`, served by buffer.segment. It steps back before it loads anything.

Loading pyarrow is 0.4 s of CPU, during which a child of equal rank makes commits wait. Not all the way back at once: on a machine that is busy
for long, what has nice 19 needs a minute for that, and a child that only loads would be given up. SCHED_IDLE starves altogether.
"""

from __future__ import annotations

import os
from typing import Final

NICE_LOADING: Final = 10
NICE: Final = 19

if __name__ == "__main__":
    os.nice(NICE_LOADING)
    from buffer.segment import main

    os.nice(NICE - NICE_LOADING)
    main()
