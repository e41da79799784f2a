"""A method of adaptation that is gentle enough never to be refused."""

import torch


class Nudge:
    """Moves every shift a little, by the loudness of what is heard."""

    def __init__(self, generation, recipient, classifier, labelled, start):
        self._classifier = classifier

    def update(self, windows):
        with torch.no_grad():
            for name, value in self._classifier.adaptable().items():
                value.add_(0.001 * windows.abs().mean() * name.endswith("bias"))
