"""What groups of devices learn with sub-models, brought back into the whole encoder (docs/method.md, section 10).

selector          which groups of channels matter for a window: gates from the responsibilities of a mixture
sub_tasks         which groups each part of the data should use: a linear programme
enhancing         trains the selector, then the encoder so that its sub-models do well
device_groups     which devices share a sub-model
trained_variants  a sub-model, the part of it that trains, and what of it a device has to be sent
aggregation       what sub-models have learnt, in the whole encoder
"""
