"""A run's report: `DIR/report.html` and `DIR/report.md`, made from what the run left in DIR.

`evidence` is gathered by the run itself and kept in `DIR/report.npz`; `runs` reads a folder;
`content` says what a report holds; `figures` draws; `page` and `markdown` write.
"""

import logging

# Matplotlib logs two warnings where its cache cannot be written; a report does without the cache.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
