"""The `course` command: `main` puts it together, and each command has a module of its own name.

Each of those has `add(commands)`, which says what the command takes, and a function that gets the parsed
options. Options go no further: below the command's module there are only values. All modules are imported at
each start and at each press of the Tab key, so they import what takes long inside functions.
"""
