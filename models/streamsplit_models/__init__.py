"""Audio encoders as plain torch modules: waveform in, unit-norm embedding out, front end included."""
