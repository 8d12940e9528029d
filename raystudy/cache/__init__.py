"""A node's cache of big arrays that never change: built once, mapped into memory by every process that needs them.

CACHE/
├── .lock                  held while room is made
└── KIND/
    ├── .raystudy-cache    says that this folder belongs to the cache
    ├── KEY.arrow          one entry, complete: an Arrow IPC file with a single record batch, sealed with checksums
    ├── KEY.lock           held by whoever builds the entry; its modification time says when the entry was last used
    └── KEY.tmp/           the entry while it is being built

`folder` finds and builds, `entry` opens, `writer` writes, `seal` has the checksums, `room` evicts, `locks` keeps processes
apart.
"""

from raystudy.cache.entry import Entry
from raystudy.cache.failures import CacheError, CacheFull
from raystudy.cache.folder import Cache, EntryInfo
from raystudy.cache.writer import ArrayWriter, Writer

__all__ = ["ArrayWriter", "Cache", "CacheError", "CacheFull", "Entry", "EntryInfo", "Writer"]
