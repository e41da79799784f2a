"""The tables that commands print: of advice, of a bundle, of signed records."""
