"""Recordings that stand for spoken words: a word is the pitch of a tone, a speaker a second, weaker tone."""

import numpy as np
import soundfile

RATE, SAMPLES = 4000, 1024
WORDS = {"down": 300.0, "up": 900.0}


def utterance(word, speaker, take, samples=SAMPLES):
    """A recording (samples,) float32 at `RATE`."""
    random, time = np.random.default_rng([speaker, take]), np.arange(samples) / RATE
    tones = np.sin(2 * np.pi * WORDS[word] * time) + 0.5 * np.sin(2 * np.pi * (1100 + 60 * speaker) * time)
    return (0.3 * tones + 0.02 * random.normal(size=samples)).astype(np.float32)


def write_speech(place, speakers=10, takes=3):
    """A directory as `ssc audit` reads it."""
    for word in WORDS:
        (place / word).mkdir(parents=True)
        for speaker in range(speakers):
            for take in range(takes):
                path = place / word / f"s{speaker:02d}-{take}.wav"
                soundfile.write(path, utterance(word, speaker, take), RATE)
    return place
