"""Embed a recording, and say what is heard in it.

python examples/embed_file.py bundle/ rain.flac [head.json]
"""

import sys

import runtime_edge

bundle, recording, *head = sys.argv[1:]
encoder = runtime_edge.open(bundle, head=head[0] if head else None)
print(encoder)
print("embeddings:", encoder.embed(recording).shape)
for window in encoder.classify(recording) if head else []:
    best, score = next(iter(window.items()))
    print(f"{window.start_s:6.2f} to {window.end_s:6.2f} s: {best} {score:.2f}", *window.detected)
