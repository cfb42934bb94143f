"""Own code beside the project: nothing in ``rc2l/`` knows these files; ``--import examples.NAME`` makes them known."""
