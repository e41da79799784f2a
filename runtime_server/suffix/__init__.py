"""The encoder's layers behind a cut, for each generation that is served."""
