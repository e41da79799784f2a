"""The encoder's layers after a cut, for each generation that is served."""
