"""Certificates, made by the openssl program."""

import subprocess


def self_signed(directory, *arguments):
    """Make a key and a certificate in a directory, signed by itself unless arguments name another signer."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    subprocess.run([*command, *arguments], cwd=directory, check=True, capture_output=True)
