"""This machine: the workspace's store, child processes, memory, cores, hardware, files of bounded size, environments.

Knows nothing of checkpoints and models. Imports the records, errors and targets, and no other chapter.
A toolbox without a door: take a module by its name.
"""
