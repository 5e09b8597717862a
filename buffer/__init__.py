"""The store: signed frames, journals, sealed segments. A library that stands alone.

It knows no protocol, no network and owns no key: it is handed a `Signer`. Side: both (the ring on the OT side, the
landing on the IT side use the same formats). Owner of the bytes: whoever opened the `Ring` or the landing for writing.

Read in this order: `types` (a reading), `manifest` (what a frame claims), `frame` (the one grammar), `journal` and
`segment` (files of frames), `recovery` (what a start may believe), `ring` (the writer), `reader` (everybody else).
"""
