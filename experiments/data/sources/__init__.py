"""The data sets: one file each, whose name is the one that `--dataset` takes.

A file defines `load(place=None, notify=print)` and returns a `types.Source`:

* `place`: where the files are, `--data-dir`; None for the usual place. It may be ignored.
* `notify`: called with what people should know, such as "reading …".
"""
