"""One module a verb: ``add_arguments(parser)`` and ``execute(arguments, console) -> exit code``."""
