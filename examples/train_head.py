"""Train a head on labelled recordings: a folder with one subfolder for each label.

python examples/train_head.py clips/ bundle/ head.json
"""

import sys

import runtime_server

clips, bundle, out = sys.argv[1:]
head = runtime_server.train_head(clips, bundle, out)
print(out, *head.labels)
if head.validation is not None:
    print(f"{head.validation.accuracy:.0%} of {head.validation.windows} windows right, {head.validation.split}")
